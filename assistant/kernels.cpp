// Products with integers for few rows, as torch operators: each activation is rounded to 8 bits by groups of 32, so that
// weights of 4 or 8 bits are multiplied as whole numbers. Built on the person's machine by assistant/kernels.py.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <immintrin.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
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

inline float sum8(__m256 x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// Eight sums of four products each of unsigned and signed bytes.
inline __m256i dot(__m256i is_unsigned, __m256i is_signed) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpbusd_epi32(_mm256_setzero_si256(), is_unsigned, is_signed);
#else
  return _mm256_madd_epi16(_mm256_maddubs_epi16(is_unsigned, is_signed), _mm256_set1_epi16(1));
#endif
}

// Rows of activations in 8 bits, in blocks of four rows: a group of 32 of each, then the next group of each. What a group
// stands for is step * values, and `sums` hold the sums of that.
struct Activations {
  int64_t rows, groups, padded;
  std::vector<int8_t> values;      // (blocks, groups, BLOCK, GROUP), the groups even in number
  std::vector<float> steps, sums;  // (blocks, BLOCK, padded)

  Activations(const at::Tensor& x, int64_t padded_groups)
      : rows(x.size(0)), groups((x.size(1) / GROUP + 1) / 2 * 2), padded(padded_groups) {
    const int64_t blocks = (rows + BLOCK - 1) / BLOCK, stored = x.size(1) / GROUP;
    values.resize(blocks * groups * BLOCK * GROUP);
    steps.resize(blocks * BLOCK * padded);
    sums.resize(blocks * BLOCK * padded);
    const auto* from = reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
    at::parallel_for(0, rows, std::max<int64_t>(1, WORTH_A_THREAD / x.size(1)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t g = 0; g < stored; ++g) {
          auto* to = values.data() + ((row / BLOCK * groups + g) * BLOCK + row % BLOCK) * GROUP;
          round(from + (row * stored + g) * GROUP, to, steps[row * padded + g], sums[row * padded + g]);
        }
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

// One block of R rows as the products read it.
struct Block {
  const int8_t* values;
  const float *steps, *sums;
  int64_t groups, padded;
};

inline __m256i bytes_of(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// One output of R rows with a weight of 4 bits: levels 0..15 that stand for (level - 8) * scale + zero. A byte holds a
// level of one group, and of the next one above it.
template <int R>
void outputs4(const Block x, const uint8_t* levels, const uint16_t* scales, const uint16_t* zeros, float* out) {
  __m256 sum[R];
  for (auto& one : sum) one = _mm256_setzero_ps();
  const __m256i low = _mm256_set1_epi8(15);
  const int8_t* values = x.values;
  for (int64_t first = 0; first < x.groups; first += LANES) {
    alignas(32) float steps[R][LANES];
    const __m256 scale = widen8(scales + first);
    const __m256 shift = _mm256_fnmadd_ps(_mm256_set1_ps(8.0f), scale, widen8(zeros + first));
    for (int r = 0; r < R; ++r) {
      _mm256_store_ps(steps[r], _mm256_mul_ps(scale, _mm256_loadu_ps(x.steps + r * x.padded + first)));
      sum[r] = _mm256_fmadd_ps(shift, _mm256_loadu_ps(x.sums + r * x.padded + first), sum[r]);
    }
    const int64_t here = std::min(LANES, x.groups - first);
    for (int64_t g = 0; g < here; g += 2, levels += GROUP, values += 2 * BLOCK * GROUP) {
      const __m256i both = bytes_of(levels);
      const __m256i level = _mm256_and_si256(both, low), next = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
      for (int r = 0; r < R; ++r) {
        const __m256 one = _mm256_cvtepi32_ps(dot(level, bytes_of(values + r * GROUP)));
        const __m256 other = _mm256_cvtepi32_ps(dot(next, bytes_of(values + (BLOCK + r) * GROUP)));
        sum[r] = _mm256_fmadd_ps(one, _mm256_broadcast_ss(steps[r] + g), sum[r]);
        sum[r] = _mm256_fmadd_ps(other, _mm256_broadcast_ss(steps[r] + g + 1), sum[r]);
      }
    }
  }
  for (int r = 0; r < R; ++r) out[r] = sum8(sum[r]);
}

// One output of R rows with a weight of 8 bits.
template <int R>
void outputs8(const Block x, const int8_t* weight, float scale, float* out) {
  __m256 sum[R];
  for (auto& one : sum) one = _mm256_setzero_ps();
  const int8_t* values = x.values;
  for (int64_t g = 0; g < x.padded; ++g, weight += GROUP, values += BLOCK * GROUP) {
    const __m256i w = bytes_of(weight), size = _mm256_abs_epi8(w);
    for (int r = 0; r < R; ++r) {
      const __m256 products = _mm256_cvtepi32_ps(dot(size, _mm256_sign_epi8(bytes_of(values + r * GROUP), w)));
      sum[r] = _mm256_fmadd_ps(products, _mm256_broadcast_ss(x.steps + r * x.padded + g), sum[r]);
    }
  }
  for (int r = 0; r < R; ++r) out[r] = scale * sum8(sum[r]);
}

// Fill y (rows, out) by `outputs(count, block, output, values)`, a block of rows at a time. A few blocks, which fit the
// processor's nearest memory, meet every weight before the next ones do.
template <typename Outputs>
void fill(at::Tensor& y, const Activations& x, const Outputs& outputs) {
  const int64_t out = y.size(1);
  auto* to = reinterpret_cast<uint16_t*>(y.mutable_data_ptr<at::BFloat16>());
  if (!x.rows || !out) return;
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (x.groups * GROUP * std::min(x.rows, TILE)));
  at::parallel_for(0, out, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = 0; tile < x.rows; tile += TILE)
      for (int64_t o = begin; o < end; ++o)
        for (int64_t row = tile; row < std::min(x.rows, tile + TILE); row += BLOCK) {
          const int64_t at = row / BLOCK * x.groups * BLOCK, count = std::min(BLOCK, x.rows - row);
          const float *steps = x.steps.data() + row * x.padded, *sums = x.sums.data() + row * x.padded;
          const Block block{x.values.data() + at * GROUP, steps, sums, x.groups, x.padded};
          float values[BLOCK];
          outputs(count, block, o, values);
          for (int64_t r = 0; r < count; ++r) to[(row + r) * out + o] = narrow(values[r]);
        }
  });
}

// `fits` says whether so many inputs are the weight's.
template <typename Fits>
void check(const at::Tensor& x, const Fits& fits) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.scalar_type() == at::kBFloat16, "x must be (rows, in) in bf16");
  const int64_t inner = x.size(1);
  TORCH_CHECK(inner && inner % GROUP == 0 && fits(inner), "x must have the weight's inputs, a multiple of 32");
}

// x (rows, in) bf16, levels (out, in / 2) uint8, scales and zeros (out, groups padded to eights) bf16 -> (rows, out) bf16
at::Tensor linear4(const at::Tensor& x, const at::Tensor& levels, const at::Tensor& scales, const at::Tensor& zeros) {
  check(x, [&](int64_t inner) { return (inner / GROUP + 1) / 2 * GROUP == levels.size(1); });
  TORCH_CHECK(levels.is_contiguous() && scales.is_contiguous() && zeros.is_contiguous(), "weights must be contiguous");
  TORCH_CHECK(
      scales.sizes() == zeros.sizes() && scales.size(0) == levels.size(0) && scales.size(1) % LANES == 0 &&
          scales.size(1) * GROUP >= x.size(1),
      "scales and zeros must be (out, groups padded to eights)");
  const Activations quantised(x, scales.size(1));
  auto y = at::empty({x.size(0), levels.size(0)}, x.options());
  const auto* level = levels.const_data_ptr<uint8_t>();
  const auto* scale = reinterpret_cast<const uint16_t*>(scales.const_data_ptr<at::BFloat16>());
  const auto* zero = reinterpret_cast<const uint16_t*>(zeros.const_data_ptr<at::BFloat16>());
  fill(y, quantised, [&](int64_t count, const Block& block, int64_t o, float* out) {
    const auto* l = level + o * levels.size(1);
    const auto *s = scale + o * scales.size(1), *z = zero + o * scales.size(1);
    switch (count) {
      case 1: return outputs4<1>(block, l, s, z, out);
      case 2: return outputs4<2>(block, l, s, z, out);
      case 3: return outputs4<3>(block, l, s, z, out);
      default: return outputs4<4>(block, l, s, z, out);
    }
  });
  return y;
}

// x (rows, in) bf16, weight (out, in) int8, scales (out) bf16 -> (rows, out) bf16
at::Tensor linear8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scales) {
  check(x, [&](int64_t inner) { return inner == weight.size(1); });
  TORCH_CHECK(weight.is_contiguous() && scales.is_contiguous(), "weights must be contiguous");
  TORCH_CHECK(scales.dim() == 1 && scales.size(0) == weight.size(0), "scales must be (out,)");
  const Activations quantised(x, x.size(1) / GROUP);
  auto y = at::empty({x.size(0), weight.size(0)}, x.options());
  const auto* w = weight.const_data_ptr<int8_t>();
  const auto* scale = reinterpret_cast<const uint16_t*>(scales.const_data_ptr<at::BFloat16>());
  fill(y, quantised, [&](int64_t count, const Block& block, int64_t o, float* out) {
    const auto* one = w + o * weight.size(1);
    const float s = widen(scale[o]);
    switch (count) {
      case 1: return outputs8<1>(block, one, s, out);
      case 2: return outputs8<2>(block, one, s, out);
      case 3: return outputs8<3>(block, one, s, out);
      default: return outputs8<4>(block, one, s, out);
    }
  });
  return y;
}

}  // namespace

TORCH_LIBRARY(nightschool, library) {
  library.def("linear4(Tensor x, Tensor levels, Tensor scales, Tensor zeros) -> Tensor");
  library.def("linear8(Tensor x, Tensor weight, Tensor scales) -> Tensor");
}

TORCH_LIBRARY_IMPL(nightschool, CPU, library) {
  library.impl("linear4", linear4);
  library.impl("linear8", linear8);
}
