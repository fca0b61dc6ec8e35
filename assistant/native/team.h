// The threads that compute one thing together. A step of a small model is four hundred parts that wait for each other, each
// of some microseconds: waking threads for each would take longer than the parts do, so one team is gathered for all.
#pragma once

#include <ATen/Parallel.h>
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace {

constexpr int LOOKS = 1 << 11;  // at what others do, some 50 microseconds, before the processor is given to somebody else
constexpr int64_t SHARES = 12;  // of a part for each thread, so that a slow one takes fewer

// What the threads of a team know of each other.
struct Meeting {
  std::atomic<uint64_t> taken = 0;  // the part's number, and in the lower half how much of it is taken
  std::atomic<int64_t> done = 0;    // of the part
  std::atomic<uint32_t> parts = 0;  // that are over
  int threads = 1;
};

// One thread of a team. All of them must call the same in the same order, and nothing that they call may throw: memory is
// taken before they meet. A part is over when all of it is done, not when all threads have come: where other programs have
// the processor, a thread that was away finds the parts over that others did without it.
class Team {
 public:
  const int number;  // below most_threads()

  Team(Meeting& m, int n) : number(n), meeting(m) {}

  // Call each(begin, end) for pieces of [0, count), at least `grain` long, in whichever thread is free; go on when all of
  // them are done.
  template <typename Each>
  void share(int64_t count, int64_t grain, const Each& each) {
    if (!count) return;
    const uint32_t part = next++;
    const int64_t shares = SHARES * meeting.threads, piece = std::max(grain, (count + shares - 1) / shares);
    uint64_t taken = meeting.taken.load(std::memory_order_acquire);
    while (taken >> 32 == part && static_cast<int64_t>(taken & UINT32_MAX) < count) {
      if (!meeting.taken.compare_exchange_weak(taken, taken + piece, std::memory_order_acq_rel)) continue;
      const int64_t begin = taken & UINT32_MAX, end = std::min(count, begin + piece);
      each(begin, end);
      if (meeting.done.fetch_add(end - begin, std::memory_order_acq_rel) + end - begin == count) return finish();
      taken = meeting.taken.load(std::memory_order_acquire);
    }
    for (int looks = 0; looks < LOOKS && meeting.parts.load(std::memory_order_acquire) == part; ++looks) _mm_pause();
    meeting.parts.wait(part, std::memory_order_acquire);
  }

 private:
  void finish() {
    meeting.done.store(0, std::memory_order_relaxed);
    meeting.taken.store(static_cast<uint64_t>(next) << 32, std::memory_order_release);
    meeting.parts.store(next, std::memory_order_release);
    meeting.parts.notify_all();
  }

  Meeting& meeting;
  uint32_t next = 0;  // part
};

// A thread that does all of something by itself and waits for nobody.
struct Alone {
  template <typename Each>
  void share(int64_t count, int64_t, const Each& each) {
    each(0, count);
  }
};

inline int most_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

// Call what(team) in as many threads as torch takes.
template <typename What>
void gather(const What& what) {
  Meeting meeting;
#pragma omp parallel num_threads(most_threads())
  {
#pragma omp single
    meeting.threads = omp_get_num_threads();
    Team team(meeting, omp_get_thread_num());
    what(team);
  }
}

}  // namespace
