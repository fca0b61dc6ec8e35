// The parts of a decoder as torch operators: products with weights of 4 or 8 bits, for which each activation is rounded to
// 8 bits by groups of 32; and norm, gated MLP and attention around them, each in one go where torch takes a dozen small
// steps, rounded to bf16 where transformers rounds. Built on the person's machine by assistant/kernels.py.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

namespace {

constexpr int64_t GROUP = 32, BLOCK = 4, TILE = 32, LANES = 8;
constexpr int64_t WORTH_A_THREAD = 1 << 16;  // products

inline float widen(uint16_t bf16) {
  uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline __m256 widen8(const uint16_t* bf16) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bf16)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

inline uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Each of eight numbers as narrow() gives it, in the upper half of its place.
inline __m256i narrowed(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_ORD_Q));
  const __m256i kept = _mm256_blendv_epi8(_mm256_set1_epi32(0x7fc00000), near, number);
  return _mm256_and_si256(kept, _mm256_set1_epi32(static_cast<int>(0xffff0000)));
}

inline __m256 rounded8(__m256 values) { return _mm256_castsi256_ps(narrowed(values)); }

inline void narrow8(__m256 values, uint16_t* to) {
  const __m256i small = _mm256_srli_epi32(narrowed(values), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(small), _mm256_extracti128_si256(small, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}

inline const uint16_t* read(const at::Tensor& x) {
  return reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
}

inline uint16_t* write(const at::Tensor& x) { return reinterpret_cast<uint16_t*>(x.mutable_data_ptr<at::BFloat16>()); }

inline bool is_plain(const at::Tensor& x) { return x.is_contiguous() && x.scalar_type() == at::kBFloat16; }

inline float sum8(__m256 x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// The exponential of eight numbers, to two units in the last place: 2^n of what is a whole number of doublings, a
// polynomial for the rest.
inline __m256 exp8(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-87.0f), _mm256_min_ps(_mm256_set1_ps(88.0f), x));  // what is no number stays none
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  const __m256 rest =
      _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x));
  __m256 sum = _mm256_set1_ps(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(term));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(sum, _mm256_castsi256_ps(power));
}

// To each of eight sums, or of sixteen partial ones, the products of unsigned and signed bytes. Without VNNI these are
// 16 bits: eight times two products of a level (0..15) and an activation (-127..127) fit.
inline __m256i add_products(__m256i sums, __m256i is_unsigned, __m256i is_signed) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpbusd_epi32(sums, is_unsigned, is_signed);
#else
  sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(is_unsigned, is_signed));
  asm("" : "+x"(sums));  // GCC would add in another order, for which it has too few registers
  return sums;
#endif
}

inline __m256 finish(__m256i sums) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
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

  explicit Activations(const at::Tensor& x)
      : rows(x.numel() / x.size(-1)), inner(x.size(-1)), groups(inner / GROUP), values(rows * inner),
        steps(rows * groups), sums(rows * groups) {
    const auto* from = read(x);
    at::parallel_for(0, rows * groups, WORTH_A_THREAD / GROUP, [&](int64_t begin, int64_t end) {
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

inline __m256i bytes_of(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

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
  for (int64_t g = 0; g < x.groups; ++g, scales += 2 * LANES, zeros += 2 * LANES, values += GROUP) {
    __m256i dots[R][2];
    for (auto& two : dots) two[0] = two[1] = _mm256_setzero_si256();
    for (int64_t at = 0; at < GROUP; at += 8, levels += 64) {
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

// Eight outputs of R rows with a weight of 8 bits.
template <int R>
void outputs8(const Activations& x, int64_t row, const int8_t* weight, const uint16_t* scales, float (*out)[LANES]) {
  const int8_t* values = x.values.data() + row * x.inner;
  const float* steps = x.steps.data() + row * x.groups;
  for (int64_t o = 0; o < LANES; ++o, weight += x.inner) {
    __m256 sum[R];
    for (auto& one : sum) one = _mm256_setzero_ps();
    for (int64_t g = 0; g < x.groups; ++g) {
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
void for_blocks(const Activations& x, int64_t blocks, int64_t size, const Outputs& outputs) {
  if (!x.rows) return;
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (x.inner * size * std::min(x.rows, TILE)));
  at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = 0; tile < x.rows; tile += TILE)
      for (int64_t n = begin; n < end; ++n)
        for (int64_t row = tile; row < std::min(x.rows, tile + TILE); row += BLOCK)
          outputs(std::min(BLOCK, x.rows - row), row, n);
  });
}

template <int64_t N>
void store(const float (*values)[N], int64_t count, int64_t out, uint16_t* to) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t o = 0; o < N; o += LANES) narrow8(_mm256_loadu_ps(values[r] + o), to + r * out + o);
}

void check(const at::Tensor& x, int64_t inner, int64_t out) {
  TORCH_CHECK(x.dim() && is_plain(x) && x.size(-1) == inner, "x must be (…, in), contiguous, in bf16");
  TORCH_CHECK(inner && inner % GROUP == 0 && out % LANES == 0, "in must be a multiple of 32, out of 8");
}

at::Tensor like(const at::Tensor& x, int64_t out) {
  auto sizes = x.sizes().vec();
  sizes.back() = out;
  return at::empty(sizes, x.options());
}

// A weight of 4 bits: levels (out / 16, in / 8, 64) uint8, scales and zeros (out / 16, in / 32, 16) bf16. A byte of levels
// holds one of an output (of sixteen) and an input (of four), and above it that of the input four later.
struct Weight4 {
  at::Tensor levels, scales, zeros;
  int64_t sixteens, inner, groups;

  Weight4(const at::Tensor& l, const at::Tensor& s, const at::Tensor& z) : levels(l), scales(s), zeros(z) {
    TORCH_CHECK(l.dim() == 3 && l.size(2) == 64 && l.is_contiguous(), "levels must be (out / 16, in / 8, 64)");
    sixteens = l.size(0), inner = l.size(1) * 8, groups = inner / GROUP;
    for (const auto* one : {&s, &z})
      TORCH_CHECK(is_plain(*one) && one->numel() == sixteens * groups * 16, "scales must be (out / 16, in / 32, 16)");
  }
};

// x (…, in) bf16 by several weights of the same inputs -> (…, out) bf16 of each
std::vector<at::Tensor> multiply(const at::Tensor& x, const std::vector<Weight4>& weights) {
  std::vector<at::Tensor> ys;
  std::vector<int64_t> begins;  // of each weight's sixteens among all
  int64_t sixteens = 0;
  for (const auto& weight : weights) {
    check(x, weight.inner, weight.sixteens * 16);
    ys.push_back(like(x, weight.sixteens * 16));
    begins.push_back(sixteens);
    sixteens += weight.sixteens;
  }
  const Activations quantised(x);
  for_blocks(quantised, sixteens, 16, [&](int64_t count, int64_t row, int64_t at) {
    const size_t which = std::upper_bound(begins.begin(), begins.end(), at) - begins.begin() - 1;
    const auto& weight = weights[which];
    const int64_t n = at - begins[which], out = weight.sixteens * 16, first = n * weight.groups * 16;
    const auto* levels = weight.levels.const_data_ptr<uint8_t>() + n * weight.inner * 8;
    const auto *scales = read(weight.scales) + first, *zeros = read(weight.zeros) + first;
    float values[BLOCK][16];
    switch (count) {
      case 1: outputs4<1>(quantised, row, levels, scales, zeros, values); break;
      case 2: outputs4<2>(quantised, row, levels, scales, zeros, values); break;
      case 3: outputs4<3>(quantised, row, levels, scales, zeros, values); break;
      default: outputs4<4>(quantised, row, levels, scales, zeros, values);
    }
    store(values, count, out, write(ys[which]) + row * out + n * 16);
  });
  return ys;
}

at::Tensor linear4(const at::Tensor& x, const at::Tensor& levels, const at::Tensor& scales, const at::Tensor& zeros) {
  return multiply(x, {Weight4(levels, scales, zeros)})[0];
}

// x (…, in) bf16, weight (out, in) int8, scales (out) bf16 -> (…, out) bf16
at::Tensor linear8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scales) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "weight must be (out, in)");
  const int64_t out = weight.size(0);
  TORCH_CHECK(is_plain(scales) && scales.numel() == out, "scales must be (out,)");
  check(x, weight.size(1), out);
  const Activations quantised(x);
  auto y = like(x, out);
  for_blocks(quantised, out / LANES, LANES, [&](int64_t count, int64_t row, int64_t eight) {
    const auto* eight_of = weight.const_data_ptr<int8_t>() + eight * LANES * quantised.inner;
    const auto* scale = read(scales) + eight * LANES;
    float values[BLOCK][LANES];
    switch (count) {
      case 1: outputs8<1>(quantised, row, eight_of, scale, values); break;
      case 2: outputs8<2>(quantised, row, eight_of, scale, values); break;
      case 3: outputs8<3>(quantised, row, eight_of, scale, values); break;
      default: outputs8<4>(quantised, row, eight_of, scale, values);
    }
    store(values, count, out, write(y) + row * out + eight * LANES);
  });
  return y;
}

// y (rows, …, out) bf16 += x (rows, …, in) bf16 · a (in, r) bf16 · b (r, out) bf16, in the rows that are named or in all.
void add_low_rank(const at::Tensor& y, const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                  const std::optional<at::Tensor>& rows) {
  const int64_t inner = a.size(0), rank = a.size(1), out = b.size(1), all = x.numel() / inner;
  TORCH_CHECK(is_plain(x) && is_plain(y) && is_plain(a) && is_plain(b) && x.size(-1) == inner &&
                  y.numel() == all * out && b.size(0) == rank && out % LANES == 0,
              "x (…, in), y (…, out), a (in, r) and b (r, out) must be bf16 and fit each other");
  if (!rows && all > TILE) {
    y.add_(x.to(at::kFloat).matmul(a.to(at::kFloat)).matmul(b.to(at::kFloat)).to(at::kBFloat16));
    return;
  }
  const auto *from = read(x), *left = read(a), *right = read(b);
  auto* to = write(y);
  const int64_t* named = rows ? rows->const_data_ptr<int64_t>() : nullptr;
  const int64_t tokens = x.dim() > 1 ? all / x.size(0) : 1, count = rows ? rows->numel() * tokens : all;
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (rank * (inner + out)));
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> low(rank), change(out);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row = named ? named[n / tokens] * tokens + n % tokens : n;
      TORCH_CHECK(row >= 0 && row < all, "there is no such row");
      std::fill(low.begin(), low.end(), 0.0f);
      std::fill(change.begin(), change.end(), 0.0f);
      for (int64_t i = 0; i < inner; ++i)
        for (int64_t r = 0; r < rank; ++r) low[r] += widen(from[row * inner + i]) * widen(left[i * rank + r]);
      for (int64_t r = 0; r < rank; ++r) {
        const __m256 part = _mm256_set1_ps(low[r]);
        for (int64_t o = 0; o < out; o += LANES) {
          const __m256 sum = _mm256_fmadd_ps(part, widen8(right + r * out + o), _mm256_loadu_ps(&change[o]));
          _mm256_storeu_ps(&change[o], sum);
        }
      }
      for (int64_t o = 0; o < out; o += LANES)
        narrow8(_mm256_add_ps(widen8(to + row * out + o), rounded8(_mm256_loadu_ps(&change[o]))), to + row * out + o);
    }
  });
}

// x (…, n) bf16 over its root mean square, times weight (n) bf16
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  TORCH_CHECK(is_plain(x) && is_plain(weight) && weight.dim() == 1 && x.size(-1) == weight.size(0),
              "x must be (…, n) and weight (n)");
  const int64_t n = weight.size(0);
  TORCH_CHECK(n % LANES == 0, "n must be a multiple of 8");
  auto y = at::empty_like(x);
  const auto *from = read(x), *w = read(weight);
  auto* to = write(y);
  at::parallel_for(0, x.numel() / n, std::max<int64_t>(1, WORTH_A_THREAD / n), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * n; first < end * n; first += n) {
      __m256 squares = _mm256_setzero_ps();
      for (int64_t i = first; i < first + n; i += LANES) {
        const __m256 part = widen8(from + i);
        squares = _mm256_fmadd_ps(part, part, squares);
      }
      const __m256 per_root = _mm256_set1_ps(1.0f / std::sqrt(sum8(squares) / n + static_cast<float>(epsilon)));
      for (int64_t i = 0; i < n; i += LANES) {
        const __m256 normed = rounded8(_mm256_mul_ps(widen8(from + first + i), per_root));
        narrow8(_mm256_mul_ps(widen8(w + i), normed), to + first + i);
      }
    }
  });
  return y;
}

// silu(gate) * up, both (…, n) bf16 and products of ours
at::Tensor silu_times(const at::Tensor& gate, const at::Tensor& up) {
  auto y = at::empty_like(gate);
  const auto *g = read(gate), *u = read(up);
  auto* to = write(y);
  const __m256 one = _mm256_set1_ps(1.0f), none = _mm256_setzero_ps();
  at::parallel_for(0, gate.numel() / LANES, WORTH_A_THREAD / LANES, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * LANES; i < end * LANES; i += LANES) {
      const __m256 value = widen8(g + i);
      const __m256 opened = _mm256_div_ps(value, _mm256_add_ps(one, exp8(_mm256_sub_ps(none, value))));
      narrow8(_mm256_mul_ps(rounded8(opened), widen8(u + i)), to + i);
    }
  });
  return y;
}

// Turn a head of `width` numbers to its position, as transformers' apply_rotary_pos_emb does.
void turn(const uint16_t* x, const uint16_t* cosine, const uint16_t* sine, int64_t width, uint16_t* to) {
  const int64_t half = width / 2;
  const auto by = [](__m256 one, const uint16_t* other) { return rounded8(_mm256_mul_ps(one, widen8(other))); };
  for (int64_t i = 0; i < half; i += LANES) {
    const __m256 first = widen8(x + i), second = widen8(x + half + i);
    narrow8(_mm256_sub_ps(by(first, cosine + i), by(second, sine + i)), to + i);
    narrow8(_mm256_add_ps(by(second, cosine + half + i), by(first, sine + half + i)), to + half + i);
  }
}

// Sixteen numbers in bf16 as their even and their odd ones.
struct Halves {
  __m256 even, odd;

  explicit Halves(const uint16_t* from) {
    const __m256i both = bytes_of(from);
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
};

// Q queries of one row that look at the same keys, each up to its own last one.
template <int Q>
struct Lookers {
  int64_t width, most = 0, counts[Q];
  float scale;
  std::vector<float> queries, weights;  // (Q, width), the even ones of each sixteen first; (Q, padded)
  uint16_t* to[Q];

  Lookers(int64_t w, float s) : width(w), scale(s), queries(Q * w) {}

  void take(int q, const uint16_t* turned, int64_t count, uint16_t* result) {
    for (int64_t i = 0; i < width; i += 2 * LANES) {
      const Halves halves(turned + i);
      _mm256_storeu_ps(&queries[q * width + i], halves.even);
      _mm256_storeu_ps(&queries[q * width + i + LANES], halves.odd);
    }
    counts[q] = count, to[q] = result, most = std::max(most, count);
  }

  void look(const uint16_t* keys, const uint16_t* values) {
    const int64_t padded = (most + LANES - 1) / LANES * LANES;
    weights.resize(Q * padded);
    for (int64_t t = 0; t < most; ++t) weigh(keys + t * width, t, padded);
    float per_total[Q];
    for (int q = 0; q < Q; ++q) per_total[q] = raise(&weights[q * padded], counts[q], padded);
    constexpr int N = Q == 1 ? 4 : Q == 2 ? 2 : 1;  // as many sums as there are registers for
    int64_t i = 0;
    for (; i + N * 16 <= width; i += N * 16) mix<N>(values + i, padded, per_total, i);
    for (; i < width; i += 16) mix<1>(values + i, padded, per_total, i);
  }

 private:
  // What a key is worth to each query.
  void weigh(const uint16_t* key, int64_t t, int64_t padded) {
    __m256 even[Q], odd[Q];
    for (int q = 0; q < Q; ++q) even[q] = odd[q] = _mm256_setzero_ps();
    for (int64_t i = 0; i < width; i += 2 * LANES) {
      const Halves k(key + i);
      for (int q = 0; q < Q; ++q) {
        even[q] = _mm256_fmadd_ps(k.even, _mm256_loadu_ps(&queries[q * width + i]), even[q]);
        odd[q] = _mm256_fmadd_ps(k.odd, _mm256_loadu_ps(&queries[q * width + i + LANES]), odd[q]);
      }
    }
    for (int q = 0; q < Q; ++q) weights[q * padded + t] = scale * sum8(_mm256_add_ps(even[q], odd[q]));
  }

  // Put the exponentials in the place of the first `count` weights, and 0 in the others'; one by their total.
  static float raise(float* weights, int64_t count, int64_t padded) {
    std::fill(weights + count, weights + padded, -std::numeric_limits<float>::infinity());
    __m256 most = _mm256_loadu_ps(weights), totals = _mm256_setzero_ps();
    for (int64_t t = LANES; t < padded; t += LANES) most = _mm256_max_ps(most, _mm256_loadu_ps(weights + t));
    alignas(32) float largest[LANES];
    _mm256_store_ps(largest, most);
    const __m256 top = _mm256_set1_ps(*std::max_element(largest, largest + LANES));
    for (int64_t t = 0; t < padded; t += LANES) {
      const __m256 weight = exp8(_mm256_sub_ps(_mm256_loadu_ps(weights + t), top));
      _mm256_storeu_ps(weights + t, weight);
      totals = _mm256_add_ps(totals, weight);
    }
    std::fill(weights + count, weights + padded, 0.0f);
    return 1.0f / sum8(totals);
  }

  // The mean of the values by the weights, of 16 N numbers of each from `at` on.
  template <int N>
  void mix(const uint16_t* values, int64_t padded, const float* per_total, int64_t at) {
    __m256 even[Q][N], odd[Q][N];
    for (int q = 0; q < Q; ++q)
      for (int n = 0; n < N; ++n) even[q][n] = odd[q][n] = _mm256_setzero_ps();
    for (int64_t t = 0; t < most; ++t, values += width)
      for (int n = 0; n < N; ++n) {
        const Halves value(values + n * 16);
        for (int q = 0; q < Q; ++q) {
          const __m256 weight = _mm256_broadcast_ss(&weights[q * padded + t]);
          even[q][n] = _mm256_fmadd_ps(weight, value.even, even[q][n]);
          odd[q][n] = _mm256_fmadd_ps(weight, value.odd, odd[q][n]);
        }
      }
    for (int q = 0; q < Q; ++q)
      for (int n = 0; n < N; ++n) {
        alignas(32) float evens[LANES], odds[LANES];
        _mm256_store_ps(evens, even[q][n]);
        _mm256_store_ps(odds, odd[q][n]);
        for (int64_t j = 0; j < LANES; ++j) {
          to[q][at + n * 16 + 2 * j] = narrow(evens[j] * per_total[q]);
          to[q][at + n * 16 + 2 * j + 1] = narrow(odds[j] * per_total[q]);
        }
      }
  }
};

// The attention of new tokens behind each row: turned to their positions, written behind the row's keys and values, and
// held against all of them up to their own. query (rows, new, heads * d), key and value (rows, new, key heads * d), cosine
// and sine (rows, new, d), keys and values (room for rows, key heads, room for tokens, d), all bf16; lengths (rows) int64
// before the new tokens -> (rows, new, heads * d) bf16
at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& cosine,
                  const at::Tensor& sine, at::Tensor& keys, at::Tensor& values, const at::Tensor& lengths, double scale) {
  TORCH_CHECK(query.dim() == 3 && keys.dim() == 4 && lengths.scalar_type() == at::kLong, "the forms must be as stated");
  const int64_t rows = query.size(0), news = query.size(1), key_heads = keys.size(1), room = keys.size(2);
  const int64_t width = keys.size(3), heads = query.size(2) / width, shared = heads / key_heads, each = rows * news;
  for (const auto* one : {&query, &key, &value, &cosine, &sine}) TORCH_CHECK(is_plain(*one), "contiguous bf16 is needed");
  TORCH_CHECK(is_plain(keys) && is_plain(values) && keys.sizes() == values.sizes() && width % (2 * LANES) == 0 &&
                  rows <= keys.size(0) && rows == lengths.numel() && heads == shared * key_heads &&
                  query.size(2) == heads * width && key.numel() == each * key_heads * width &&
                  value.numel() == key.numel() && cosine.numel() == each * width && sine.numel() == cosine.numel(),
              "rows, heads and widths must fit each other");
  auto y = at::empty_like(query);
  const auto *q = read(query), *k = read(key), *v = read(value), *c = read(cosine), *s = read(sine);
  auto *held_keys = write(keys), *held_values = write(values), *to = write(y);
  const int64_t* before = lengths.const_data_ptr<int64_t>();
  int64_t looks = 1;
  for (int64_t row = 0; row < rows; ++row) {
    TORCH_CHECK(before[row] >= 0 && before[row] + news <= room, "there is no room for the new tokens");
    looks += news * (before[row] + news);
  }
  at::parallel_for(0, each, WORTH_A_THREAD / (key_heads * width), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t head = 0; head < key_heads; ++head) {
        const int64_t row = n / news, place = (row * key_heads + head) * room + before[row] + n % news;
        turn(k + (n * key_heads + head) * width, c + n * width, s + n * width, width, held_keys + place * width);
        std::memcpy(held_values + place * width, v + (n * key_heads + head) * width, width * sizeof *v);
      }
  });
  // The queries to a key head, token by token, are taken four at a time; late ones, which look at many keys, and early
  // ones in turn, so that threads have as much to do.
  const int64_t asked = news * shared, blocks = (asked + BLOCK - 1) / BLOCK, units = rows * key_heads * blocks;
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD * units / (2 * looks * heads * width));
  const auto answer = [&]<int Q>(int64_t row, int64_t key_head, int64_t first) {
    Lookers<Q> lookers(width, scale);
    std::vector<uint16_t> turned(width);
    for (int i = 0; i < Q; ++i) {
      const int64_t token = (first + i) / shared, head = key_head * shared + (first + i) % shared, n = row * news + token;
      turn(q + (n * heads + head) * width, c + n * width, s + n * width, width, turned.data());
      lookers.take(i, turned.data(), before[row] + token + 1, to + (n * heads + head) * width);
    }
    const int64_t at = (row * key_heads + key_head) * room * width;
    lookers.look(held_keys + at, held_values + at);
  };
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit % blocks, block = b % 2 ? blocks - 1 - b / 2 : b / 2, first = block * BLOCK;
      const int64_t key_head = unit / blocks % key_heads, row = unit / blocks / key_heads;
      switch (std::min(BLOCK, asked - first)) {
        case 1: answer.template operator()<1>(row, key_head, first); break;
        case 2: answer.template operator()<2>(row, key_head, first); break;
        case 3: answer.template operator()<3>(row, key_head, first); break;
        default: answer.template operator()<4>(row, key_head, first);
      }
    }
  });
  return y;
}

using Tensors = std::vector<at::Tensor>;
using Maybes = c10::List<std::optional<at::Tensor>>;

// Several linear layers: three tensors of each weight, and what adapters change. `changes` are, for each adapter, the
// numbers of its rows, or none for all, and two factors of each layer, or none.
struct Linears {
  std::vector<Weight4> weights;
  const Maybes &biases, &changes;

  Linears(const Tensors& parts, const Maybes& b, const Maybes& c) : biases(b), changes(c) {
    for (size_t i = 0; i + 2 < parts.size(); i += 3) weights.emplace_back(parts[i], parts[i + 1], parts[i + 2]);
    TORCH_CHECK(weights.size() * 3 == parts.size() && weights.size() == biases.size() &&
                    changes.size() % (1 + 2 * weights.size()) == 0,
                "three tensors, a bias and two factors of each layer are needed");
  }

  // What the layers from `first` to before `end` make of x.
  Tensors operator()(const at::Tensor& x, size_t first, size_t end) const {
    auto ys = multiply(x, {weights.begin() + first, weights.begin() + end});
    for (size_t n = first; n < end; ++n) {
      const std::optional<at::Tensor> bias = biases[n];
      if (bias) ys[n - first].add_(*bias);
      for (size_t at = 0; at < changes.size(); at += 1 + 2 * weights.size()) {
        const std::optional<at::Tensor> rows = changes[at], a = changes[at + 1 + 2 * n], b = changes[at + 2 + 2 * n];
        if (a && b) add_low_rank(ys[n - first], x, *a, *b, rows);
      }
    }
    return ys;
  }
};

// A gated MLP with silu, whose linear layers are gate, up and down.
at::Tensor gated(const at::Tensor& x, const Tensors& weights, const Maybes& biases, const Maybes& changes) {
  const Linears linears(weights, biases, changes);
  TORCH_CHECK(linears.weights.size() == 3, "gate, up and down are needed");
  const auto opened = linears(x, 0, 2);
  return linears(silu_times(opened[0], opened[1]), 2, 3)[0];
}

// Attention with its linear layers query, key, value and output; the rest is as in `attend`.
at::Tensor attention(const at::Tensor& x, const Tensors& weights, const Maybes& biases, const Maybes& changes,
                     const at::Tensor& cosine, const at::Tensor& sine, at::Tensor& keys, at::Tensor& values,
                     const at::Tensor& lengths, double scale) {
  const Linears linears(weights, biases, changes);
  TORCH_CHECK(linears.weights.size() == 4, "query, key, value and output are needed");
  const auto asked = linears(x, 0, 3);
  return linears(attend(asked[0], asked[1], asked[2], cosine, sine, keys, values, lengths, scale), 3, 4)[0];
}

}  // namespace

TORCH_LIBRARY(nightschool, library) {
  library.def("linear4(Tensor x, Tensor levels, Tensor scales, Tensor zeros) -> Tensor");
  library.def("linear8(Tensor x, Tensor weight, Tensor scales) -> Tensor");
  library.def("add_low_rank(Tensor(a!) y, Tensor x, Tensor a, Tensor b, Tensor? rows) -> ()");
  library.def("rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor");
  library.def("gated(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor?[] changes) -> Tensor");
  library.def(
      "attention(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor?[] changes, Tensor cosine, Tensor sine, "
      "Tensor(a!) keys, Tensor(b!) values, Tensor lengths, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(nightschool, CPU, library) {
  library.impl("linear4", linear4);
  library.impl("linear8", linear8);
  library.impl("add_low_rank", add_low_rank);
  library.impl("rms_norm", rms_norm);
  library.impl("gated", gated);
  library.impl("attention", attention);
}
