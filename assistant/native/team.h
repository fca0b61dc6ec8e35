// The threads that compute one thing together. A step of a small model is four hundred parts that wait for each other, each
// of some microseconds: waking threads for each would take longer than the parts do, so one team is gathered for all.
#pragma once

#include <ATen/Parallel.h>
#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace {

constexpr int LOOKS = 1 << 14;  // at what others have done, before the processor is given to somebody else
constexpr int64_t SHARES = 12;  // of a part for each thread, so that a slow one takes fewer

// What the threads of a team know of each other.
struct Meeting {
  std::atomic<int64_t> taken[2] = {0, 0};  // of this part or the next
  std::atomic<int> arrived = 0;
  std::atomic<uint32_t> parts = 0;  // that all have done
  int threads = 1;
};

// One thread of a team. All of them must call the same in the same order, and nothing that they call may throw: memory is
// taken before they meet.
class Team {
 public:
  const int number;  // below most_threads()

  Team(Meeting& m, int n) : number(n), meeting(m) {}

  // Call each(begin, end) for pieces of [0, count), at least `grain` long, in whichever thread is free; go on when all of
  // them are done.
  template <typename Each>
  void share(int64_t count, int64_t grain, const Each& each) {
    auto& taken = meeting.taken[done % 2];
    const int64_t shares = SHARES * meeting.threads, piece = std::max(grain, (count + shares - 1) / shares);
    for (int64_t begin; (begin = taken.fetch_add(piece, std::memory_order_relaxed)) < count;)
      each(begin, std::min(count, begin + piece));
    ++done;
    if (meeting.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == meeting.threads) {
      meeting.arrived.store(0, std::memory_order_relaxed);
      taken.store(0, std::memory_order_relaxed);
      meeting.parts.store(done, std::memory_order_release);
      return;
    }
    for (int looks = 1; meeting.parts.load(std::memory_order_acquire) != done; ++looks)
      looks < LOOKS ? _mm_pause() : static_cast<void>(sched_yield());
  }

 private:
  Meeting& meeting;
  uint32_t done = 0;
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
