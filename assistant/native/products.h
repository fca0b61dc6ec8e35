// Products with weights of 4 or 8 bits, for which each activation is rounded to 8 bits by groups of 32, and what an adapter
// adds to them.
#pragma once

#include "numbers.h"

namespace {

constexpr int64_t GROUP = 32;
constexpr int64_t TILE = 32;  // rows whose activations fit the processor's nearest memory

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
    for_count(count, [&]<int R>() { outputs4<R>(quantised, row, levels, scales, zeros, values); });
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
    for_count(count, [&]<int R>() { outputs8<R>(quantised, row, eight_of, scale, values); });
    store(values, count, out, write(y) + row * out + eight * LANES);
  });
  return y;
}

// low (r) = x (in) · a (in, r)
void take_in(const std::vector<float>& x, const uint16_t* a, std::vector<float>& low) {
  const int64_t inner = x.size(), rank = low.size();
  int64_t r = 0;
  for (; r + LANES <= rank; r += LANES) {
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    int64_t i = 0;
    for (; i + 4 <= inner; i += 4)
      for (int k = 0; k < 4; ++k)
        sums[k] = _mm256_fmadd_ps(_mm256_broadcast_ss(&x[i + k]), widen8(a + (i + k) * rank + r), sums[k]);
    for (; i < inner; ++i) sums[0] = _mm256_fmadd_ps(_mm256_broadcast_ss(&x[i]), widen8(a + i * rank + r), sums[0]);
    const __m256 sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    _mm256_storeu_ps(&low[r], sum);
  }
  for (; r < rank; ++r) {
    low[r] = 0;
    for (int64_t i = 0; i < inner; ++i) low[r] += x[i] * widen(a[i * rank + r]);
  }
}

// y (out) += low (r) · b (r, out)
void give_out(const std::vector<float>& low, const uint16_t* b, int64_t out, uint16_t* y) {
  for (int64_t o = 0; o < out; o += LANES) {
    __m256 change = _mm256_setzero_ps();
    for (size_t r = 0; r < low.size(); ++r)
      change = _mm256_fmadd_ps(_mm256_broadcast_ss(&low[r]), widen8(b + r * out + o), change);
    narrow8(_mm256_add_ps(widen8(y + o), rounded8(change)), y + o);
  }
}

// y (rows, …, out) bf16 += x (rows, …, in) bf16 · a (in, r) bf16 · b (r, out) bf16, in the rows that are named or in all.
void add_low_rank(const at::Tensor& y, const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                  const std::optional<at::Tensor>& rows) {
  const int64_t inner = a.size(0), rank = a.size(1), out = b.size(1), all = x.numel() / inner;
  TORCH_CHECK(is_plain(x) && is_plain(y) && is_plain(a) && is_plain(b) && x.size(-1) == inner &&
                  y.numel() == all * out && b.size(0) == rank && out % LANES == 0,
              "x (…, in), y (…, out), a (in, r) and b (r, out) must be bf16 and fit each other");
  const auto *from = read(x), *left = read(a), *right = read(b);
  auto* to = write(y);
  const int64_t* named = rows ? rows->const_data_ptr<int64_t>() : nullptr;
  const int64_t tokens = x.dim() > 1 ? all / x.size(0) : 1, count = rows ? rows->numel() * tokens : all;
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (rank * (inner + out)));
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> wide(inner), low(rank);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row = named ? named[n / tokens] * tokens + n % tokens : n;
      TORCH_CHECK(row >= 0 && row < all, "there is no such row");
      for (int64_t i = 0; i < inner; ++i) wide[i] = widen(from[row * inner + i]);
      take_in(wide, left, low);
      give_out(low, right, out, to + row * out);
    }
  });
}

}  // namespace
