// Eight numbers at a time: bf16 and back, rounded as torch rounds, sums, exponentials; and how tensors are read and written.
#pragma once

#include <ATen/ATen.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

namespace {

constexpr int64_t LANES = 8;
constexpr int64_t WORTH_A_PIECE = 1 << 13;  // products

// Call what is made for a number of rows, or of queries, of at most `Most`.
template <int Most, typename Made>
inline void for_count(int64_t count, const Made& made) {
  if constexpr (Most > 1)
    if (count < Most) return for_count<Most - 1>(count, made);
  made.template operator()<Most>();
}

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

// Each of eight numbers rounded to bf16, in the upper half of its place.
inline __m256i narrowed(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_ORD_Q));
  const __m256i kept = _mm256_blendv_epi8(_mm256_set1_epi32(0x7fc00000), near, number);
  return _mm256_and_si256(kept, _mm256_set1_epi32(static_cast<int>(0xffff0000)));
}

#if defined(__AVX512BF16__) && defined(__AVX512VL__)
inline __m256 rounded8(__m256 values) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)_mm256_cvtneps_pbh(values)), 16));
}

inline void narrow8(__m256 values, uint16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), (__m128i)_mm256_cvtneps_pbh(values));
}
#else
inline __m256 rounded8(__m256 values) { return _mm256_castsi256_ps(narrowed(values)); }

inline void narrow8(__m256 values, uint16_t* to) {
  const __m256i small = _mm256_srli_epi32(narrowed(values), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(small), _mm256_extracti128_si256(small, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}
#endif

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

// The sums of eight times eight numbers, each as sum8() gives it: of the first, third, fifth and seventh, then of the others.
inline __m256 sums8(const __m256 (&x)[LANES]) {
  __m256 four[4], two[2];
  for (int i = 0; i < 4; ++i)
    four[i] = _mm256_add_ps(_mm256_permute2f128_ps(x[2 * i], x[2 * i + 1], 0x20),
                            _mm256_permute2f128_ps(x[2 * i], x[2 * i + 1], 0x31));
  for (int i = 0; i < 2; ++i) {
    const __m256d first = _mm256_castps_pd(four[2 * i]), second = _mm256_castps_pd(four[2 * i + 1]);
    two[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(first, second)),
                           _mm256_castpd_ps(_mm256_unpackhi_pd(first, second)));
  }
  return _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xdd));
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

inline __m256i bytes_of(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

}  // namespace
