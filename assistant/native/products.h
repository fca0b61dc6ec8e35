// Products with weights of 4 or 8 bits, for which each activation is rounded to 8 bits by groups of 32, and what an adapter
// adds to them.
#pragma once

#include "numbers.h"
#include "team.h"

namespace {

constexpr int64_t GROUP = 32;
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define WIDE_INTEGERS
constexpr int ROWS = 8;          // that are computed together: there are registers for so many
#else
constexpr int ROWS = 4;
#endif
constexpr int64_t TILE = 32;     // rows whose activations fit the processor's nearest memory
constexpr int64_t AHEAD = 2048;  // bytes of a weight that are asked for before they are needed: processors stop at a page's end

// To each of eight sums, or of sixteen partial ones, the products of unsigned and signed bytes. Without VNNI these are
// 16 bits: eight times two products of a level (0..15) and an activation (-127..127) fit.
inline __m256i add_products(__m256i sums, __m256i is_unsigned, __m256i is_signed) {
#ifdef WIDE_INTEGERS
  return _mm256_dpbusd_epi32(sums, is_unsigned, is_signed);
#else
  sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(is_unsigned, is_signed));
  asm("" : "+x"(sums));  // GCC would add in another order, for which it has too few registers
  return sums;
#endif
}

inline __m256 finish(__m256i sums) {
#ifdef WIDE_INTEGERS
  return _mm256_cvtepi32_ps(sums);
#else
  return _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
#endif
}

// Rows of activations in 8 bits. What a group of 32 stands for is step * values, and `sums` hold the sums of that.
struct Activations {
  int64_t rows, inner, groups;
  std::vector<int8_t> values;      // (rows, inner)
  std::vector<float> steps, sums;  // (rows, groups)

  Activations(int64_t r, int64_t i)
      : rows(r), inner(i), groups(i / GROUP), values(r * i), steps(r * groups), sums(r * groups) {}

  // Round what `from` (rows, inner) holds.
  template <typename Sharing>
  void take(Sharing& team, const uint16_t* from) {
    team.share(rows * groups, WORTH_A_PIECE / GROUP, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) round(from + g * GROUP, values.data() + g * GROUP, steps[g], sums[g]);
    });
  }

  static void round(const uint16_t* from, int8_t* to, float& step, float& sum) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 part[4], largest = _mm256_setzero_ps(), nothing = _mm256_setzero_ps();
    for (int k = 0; k < 4; ++k) {
      part[k] = widen8(from + k * LANES);
      largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, part[k]));
      nothing = _mm256_fmadd_ps(part[k], _mm256_setzero_ps(), nothing);
    }
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    step = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four))) / 127.0f;
    const __m256 per_step = _mm256_set1_ps(step > 0 ? 1.0f / step : 0.0f);
    __m256i whole[4], total = _mm256_setzero_si256();
    for (int k = 0; k < 4; ++k) {
      whole[k] = _mm256_cvtps_epi32(_mm256_mul_ps(part[k], per_step));
      total = _mm256_add_epi32(total, whole[k]);
    }
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(bytes, order));
    step += sum8(nothing);  // what is infinite or no number stays so
    sum = step * sum8(_mm256_cvtepi32_ps(total));
  }
};

inline void ask_for(const void* at) { _mm_prefetch(static_cast<const char*>(at) + AHEAD, _MM_HINT_T0); }

#ifdef WIDE_INTEGERS

inline __m512 widen16(const uint16_t* bf16) {
  const __m512i bits = _mm512_cvtepu16_epi32(bytes_of(bf16));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

inline __m512i four_bytes16(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return _mm512_set1_epi32(four);
}

// Sixteen outputs of R rows with a weight of 4 bits: levels 0..15 that stand for (level - 8) * scale + zero.
template <int R>
void outputs4(const Activations& x, int64_t row, const uint8_t* levels, const uint16_t* scales, const uint16_t* zeros,
              float (*out)[2 * LANES]) {
  __m512 sum[R];
  for (auto& one : sum) one = _mm512_setzero_ps();
  const __m512i low = _mm512_set1_epi8(15);
  const int8_t* values = x.values.data() + row * x.inner;
  const float *steps = x.steps.data() + row * x.groups, *sums = x.sums.data() + row * x.groups;
  const bool meets_first = row % TILE == 0;
  for (int64_t g = 0; g < x.groups; ++g, scales += 2 * LANES, zeros += 2 * LANES, values += GROUP) {
    __m512i dots[R];
    for (auto& one : dots) one = _mm512_setzero_si512();
    for (int64_t at = 0; at < GROUP; at += 8, levels += 64) {
      if (meets_first) ask_for(levels);
      const __m512i both = _mm512_loadu_si512(levels), level = _mm512_and_si512(both, low);
      const __m512i higher = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      for (int r = 0; r < R; ++r) {
        dots[r] = _mm512_dpbusd_epi32(dots[r], level, four_bytes16(values + r * x.inner + at));
        dots[r] = _mm512_dpbusd_epi32(dots[r], higher, four_bytes16(values + r * x.inner + at + 4));
      }
    }
    const __m512 scale = widen16(scales);
    const __m512 shift = _mm512_fnmadd_ps(_mm512_set1_ps(8.0f), scale, widen16(zeros));
    for (int r = 0; r < R; ++r) {
      const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(steps[r * x.groups + g]));
      sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r]), step, sum[r]);
      sum[r] = _mm512_fmadd_ps(shift, _mm512_set1_ps(sums[r * x.groups + g]), sum[r]);
    }
  }
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(out[r], sum[r]);
}

#else

inline __m256i four_bytes(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return _mm256_set1_epi32(four);
}

// Sixteen outputs, in two eights, of R rows with a weight of 4 bits: levels 0..15 that stand for
// (level - 8) * scale + zero.
template <int R>
void outputs4(const Activations& x, int64_t row, const uint8_t* levels, const uint16_t* scales, const uint16_t* zeros,
              float (*out)[2 * LANES]) {
  alignas(32) __m256 sum[R][2];
  for (auto& two : sum) two[0] = two[1] = _mm256_setzero_ps();
  const __m256i low = _mm256_set1_epi8(15);
  const int8_t* values = x.values.data() + row * x.inner;
  const float *steps = x.steps.data() + row * x.groups, *sums = x.sums.data() + row * x.groups;
  const bool meets_first = row % TILE == 0;
  for (int64_t g = 0; g < x.groups; ++g, scales += 2 * LANES, zeros += 2 * LANES, values += GROUP) {
    __m256i dots[R][2];
    for (auto& two : dots) two[0] = two[1] = _mm256_setzero_si256();
    for (int64_t at = 0; at < GROUP; at += 8, levels += 64) {
      if (meets_first) ask_for(levels);
      const __m256i both = bytes_of(levels), others = bytes_of(levels + 32);
      const __m256i level[2] = {_mm256_and_si256(both, low), _mm256_and_si256(others, low)};
      const __m256i higher[2] = {_mm256_and_si256(_mm256_srli_epi16(both, 4), low),
                                 _mm256_and_si256(_mm256_srli_epi16(others, 4), low)};
      for (int r = 0; r < R; ++r) {
        const __m256i first = four_bytes(values + r * x.inner + at), second = four_bytes(values + r * x.inner + at + 4);
        for (int e = 0; e < 2; ++e) dots[r][e] = add_products(dots[r][e], level[e], first);
        for (int e = 0; e < 2; ++e) dots[r][e] = add_products(dots[r][e], higher[e], second);
      }
    }
    for (int e = 0; e < 2; ++e) {
      const __m256 scale = widen8(scales + e * LANES);
      const __m256 shift = _mm256_fnmadd_ps(_mm256_set1_ps(8.0f), scale, widen8(zeros + e * LANES));
      for (int r = 0; r < R; ++r) {
        const __m256 step = _mm256_mul_ps(scale, _mm256_broadcast_ss(steps + r * x.groups + g));
        const __m256 so_far = _mm256_fmadd_ps(finish(dots[r][e]), step, sum[r][e]);
        sum[r][e] = _mm256_fmadd_ps(shift, _mm256_broadcast_ss(sums + r * x.groups + g), so_far);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int e = 0; e < 2; ++e) _mm256_storeu_ps(out[r] + e * LANES, sum[r][e]);
}

#endif

// Eight outputs of R rows with a weight of 8 bits.
template <int R>
void outputs8(const Activations& x, int64_t row, const int8_t* weight, const uint16_t* scales, float (*out)[LANES]) {
  const int8_t* values = x.values.data() + row * x.inner;
  const float* steps = x.steps.data() + row * x.groups;
  const bool meets_first = row % TILE == 0;
  for (int64_t o = 0; o < LANES; ++o, weight += x.inner) {
    __m256 sum[R];
    for (auto& one : sum) one = _mm256_setzero_ps();
    for (int64_t g = 0; g < x.groups; ++g) {
      if (meets_first && g % 2 == 0) ask_for(weight + g * GROUP);
      const __m256i w = bytes_of(weight + g * GROUP), size = _mm256_abs_epi8(w);
      for (int r = 0; r < R; ++r) {
        const __m256i value = _mm256_sign_epi8(bytes_of(values + r * x.inner + g * GROUP), w);
        const __m256 products = finish(add_products(_mm256_setzero_si256(), size, value));
        sum[r] = _mm256_fmadd_ps(products, _mm256_broadcast_ss(steps + r * x.groups + g), sum[r]);
      }
    }
    for (int r = 0; r < R; ++r) out[r][o] = widen(scales[o]) * sum8(sum[r]);
  }
}

// Call `outputs(count, row, n)` for all blocks of rows and of `size` outputs. A few rows, which fit the processor's nearest
// memory, meet every weight before the next ones do.
template <typename Outputs>
void for_blocks(Team& team, const Activations& x, int64_t blocks, int64_t size, const Outputs& outputs) {
  const int64_t grain = std::max<int64_t>(1, WORTH_A_PIECE / (x.inner * size * std::max<int64_t>(1, std::min(x.rows, TILE))));
  team.share(blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = 0; tile < x.rows; tile += TILE)
      for (int64_t n = begin; n < end; ++n)
        for (int64_t row = tile; row < std::min(x.rows, tile + TILE); row += ROWS)
          outputs(std::min<int64_t>(ROWS, x.rows - row), row, n);
  });
}

void check(int64_t inner, int64_t out) {
  TORCH_CHECK(inner && inner % GROUP == 0 && out % LANES == 0, "in must be a multiple of 32, out of 8");
}

void check(const at::Tensor& x, int64_t inner) {
  TORCH_CHECK(x.dim() && is_plain(x) && x.size(-1) == inner, "x must be (…, in), contiguous, in bf16");
}

at::Tensor like(const at::Tensor& x, int64_t out) {
  auto sizes = x.sizes().vec();
  sizes.back() = out;
  return at::empty(sizes, x.options());
}

// A head with a weight of 8 bits (out, in) and scales (out).
struct Head {
  const int8_t* weight;
  const uint16_t* scales;
  int64_t inner, out;

  Head(const at::Tensor& w, const at::Tensor& s) {
    TORCH_CHECK(w.dim() == 2 && w.is_contiguous(), "weight must be (out, in)");
    inner = w.size(1), out = w.size(0);
    TORCH_CHECK(is_plain(s) && s.numel() == out, "scales must be (out,)");
    check(inner, out);
    weight = w.const_data_ptr<int8_t>(), scales = read(s);
  }

  // y (rows, out) of x (rows, in)
  void multiply(Team& team, const Activations& x, uint16_t* y) const {
    for_blocks(team, x, out / LANES, LANES, [&](int64_t count, int64_t row, int64_t eight) {
      const int64_t first = eight * LANES;
      float values[ROWS][LANES];
      for_count<ROWS>(count, [&]<int R>() { outputs8<R>(x, row, weight + first * inner, scales + first, values); });
      for (int64_t r = 0; r < count; ++r) narrow8(_mm256_loadu_ps(values[r]), y + (row + r) * out + first);
    });
  }
};

// x (…, in) bf16, weight (out, in) int8, scales (out) bf16 -> (…, out) bf16
at::Tensor linear8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scales) {
  const Head head(weight, scales);
  check(x, head.inner);
  auto y = like(x, head.out);
  const auto* from = read(x);
  auto* to = write(y);
  Activations rounded(x.numel() / head.inner, head.inner);
  gather([&](Team& team) {
    rounded.take(team, from);
    head.multiply(team, rounded, to);
  });
  return y;
}

// What an adapter adds to rows of a linear layer: x (in) times a, times b. Of the rank, which is filled up to eights, eight
// columns of a lie together, and sixteen outputs of b: a (rank / 8, in, 8), b (out / 16, rank, 16).
struct Change {
  const uint16_t *a, *b;
  int64_t rank;
  const uint8_t* rows;  // whether it is for a row; none: for all
  int64_t at = 0;       // where its numbers lie among those of a row

  Change(const at::Tensor& first, const at::Tensor& second, int64_t inner, int64_t out, const std::vector<uint8_t>& marked)
      : a(read(first)), b(read(second)), rank(first.size(0) * LANES), rows(marked.empty() ? nullptr : marked.data()) {
    TORCH_CHECK(is_plain(first) && is_plain(second) && first.numel() == rank * inner && second.numel() == rank * out &&
                    inner % 4 == 0 && out % 16 == 0,
                "a must be (r / 8, in, 8) and b (out / 16, r, 16) in bf16, and fit their layer");
  }

  bool is_for(int64_t row) const { return !rows || rows[row]; }

  // Eight of the numbers, from `r` on, that x makes with a.
  void take_in(const uint16_t* x, int64_t inner, int64_t r, float* low) const {
    const uint16_t* eights = a + r * inner;
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t i = 0; i < inner; i += 4) {
      ask_for(eights + i * LANES);
      for (int k = 0; k < 4; ++k)
        sums[k] = _mm256_fmadd_ps(_mm256_set1_ps(widen(x[i + k])), widen8(eights + (i + k) * LANES), sums[k]);
    }
    _mm256_storeu_ps(low, _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
  }

  // Add to the sixteen outputs y, from `o` on, what the numbers make with b.
  void give_out(const float* low, int64_t o, uint16_t* y) const {
    const uint16_t* sixteens = b + o * rank;
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t r = 0; r < rank; ++r, sixteens += 16) {
      if (r % 2 == 0) ask_for(sixteens);
      for (int e = 0; e < 2; ++e)
        sums[e] = _mm256_fmadd_ps(_mm256_broadcast_ss(low + r), widen8(sixteens + e * LANES), sums[e]);
    }
    for (int e = 0; e < 2; ++e) narrow8(_mm256_add_ps(widen8(y + e * LANES), rounded8(sums[e])), y + e * LANES);
  }
};

// A linear layer with a weight of 4 bits: levels (out / 16, in / 8, 64) uint8, scales and zeros (out / 16, in / 32, 16) bf16.
// A byte of levels holds one of an output (of sixteen) and an input (of four), and above it that of the input four later.
struct Linear {
  const uint8_t* levels;
  const uint16_t *scales, *zeros, *bias = nullptr;
  int64_t inner, out;
  std::vector<Change> changes;

  Linear(const at::Tensor& l, const at::Tensor& s, const at::Tensor& z) {
    TORCH_CHECK(l.dim() == 3 && l.size(2) == 64 && l.is_contiguous(), "levels must be (out / 16, in / 8, 64)");
    inner = l.size(1) * 8, out = l.size(0) * 16;
    for (const auto* one : {&s, &z})
      TORCH_CHECK(is_plain(*one) && one->numel() == out * inner / GROUP, "scales must be (out / 16, in / 32, 16)");
    levels = l.const_data_ptr<uint8_t>(), scales = read(s), zeros = read(z);
  }
};

// Several linear layers of the same inputs.
struct Linears {
  std::vector<Linear> layers;
  std::vector<int64_t> begins;  // of each layer's sixteens among all
  int64_t sixteens = 0, lows = 0;

  void add(Linear layer) {
    begins.push_back(sixteens);
    sixteens += layer.out / 16;
    for (auto& change : layer.changes) {
      change.at = lows;
      lows += change.rank;
    }
    layers.push_back(std::move(layer));
  }

  // What x (rows, in) makes with the adapters' first factors: low (rows, lows).
  void take_in(Team& team, const uint16_t* x, int64_t rows, std::vector<float>& low) const {
    if (!lows) return;
    team.share(rows * lows / LANES, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t row = n * LANES / lows, at = n * LANES % lows;
        for (const auto& layer : layers)
          for (const auto& change : layer.changes)
            if (at >= change.at && at < change.at + change.rank && change.is_for(row))
              change.take_in(x + row * layer.inner, layer.inner, at - change.at, &low[n * LANES]);
      }
    });
  }

  // Call to(layer, row, output, sixteen numbers in bf16) for all that they make of x and of `low`.
  template <typename To>
  void multiply(Team& team, const Activations& x, const std::vector<float>& low, const To& to) const {
    for_blocks(team, x, sixteens, 16, [&](int64_t count, int64_t row, int64_t at) {
      const size_t which = std::upper_bound(begins.begin(), begins.end(), at) - begins.begin() - 1;
      const Linear& layer = layers[which];
      const int64_t n = at - begins[which], first = n * x.groups * 16;
      float values[ROWS][16];
      for_count<ROWS>(count, [&]<int R>() {
        outputs4<R>(x, row, layer.levels + n * x.inner * 8, layer.scales + first, layer.zeros + first, values);
      });
      for (int64_t r = 0; r < count; ++r) {
        alignas(32) uint16_t y[16];
        for (int64_t o = 0; o < 16; o += LANES) {
          narrow8(_mm256_loadu_ps(values[r] + o), y + o);
          if (layer.bias) narrow8(_mm256_add_ps(widen8(y + o), widen8(layer.bias + n * 16 + o)), y + o);
        }
        for (const auto& change : layer.changes)
          if (change.is_for(row + r)) change.give_out(&low[(row + r) * lows + change.at], n * 16, y);
        to(which, row + r, n * 16, y);
      }
    });
  }
};

// x (…, in) bf16 by a weight -> (…, out) bf16
at::Tensor linear4(const at::Tensor& x, const at::Tensor& levels, const at::Tensor& scales, const at::Tensor& zeros) {
  Linears linears;
  linears.add(Linear(levels, scales, zeros));
  const Linear& layer = linears.layers[0];
  check(x, layer.inner);
  check(layer.inner, layer.out);
  auto y = like(x, layer.out);
  const auto* from = read(x);
  auto* to = write(y);
  Activations rounded(x.numel() / layer.inner, layer.inner);
  const std::vector<float> low;
  gather([&](Team& team) {
    rounded.take(team, from);
    linears.multiply(team, rounded, low, [&](size_t, int64_t row, int64_t o, const uint16_t* sixteen) {
      std::memcpy(to + row * layer.out + o, sixteen, 16 * sizeof *to);
    });
  });
  return y;
}

// Mark the rows that are named, each of so many tokens; nothing is marked where none are named.
std::vector<uint8_t> mark(const std::optional<at::Tensor>& named, int64_t rows, int64_t tokens) {
  if (!named) return {};
  std::vector<uint8_t> marked(rows * tokens);
  const auto* numbers = named->const_data_ptr<int64_t>();
  for (int64_t n = 0; n < named->numel(); ++n) {
    TORCH_CHECK(numbers[n] >= 0 && numbers[n] < rows, "there is no such row");
    std::fill_n(marked.begin() + numbers[n] * tokens, tokens, 1);
  }
  return marked;
}

// y (rows, …, out) bf16 += what an adapter makes of x (rows, …, in) bf16, in the rows that are named or in all.
void add_low_rank(const at::Tensor& y, const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                  const std::optional<at::Tensor>& named) {
  const int64_t inner = x.size(-1), out = y.size(-1), all = x.numel() / inner;
  TORCH_CHECK(is_plain(x) && is_plain(y) && y.numel() == all * out, "x (…, in) and y (…, out) must be bf16, of as many rows");
  const auto marked = x.dim() > 1 ? mark(named, x.size(0), all / x.size(0)) : mark(named, all, 1);
  const Change change(a, b, inner, out, marked);
  const auto* from = read(x);
  auto* to = write(y);
  std::vector<std::vector<float>> lows(most_threads(), std::vector<float>(change.rank));
  gather([&](Team& team) {
    auto& low = lows[team.number];
    team.share(all, std::max<int64_t>(1, WORTH_A_PIECE / (change.rank * (inner + out))), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (!change.is_for(row)) continue;
        for (int64_t r = 0; r < change.rank; r += LANES) change.take_in(from + row * inner, inner, r, &low[r]);
        for (int64_t o = 0; o < out; o += 16) change.give_out(low.data(), o, to + row * out + o);
      }
    });
  });
}

}  // namespace
