// The attention of new tokens behind the keys and values of their rows.
#pragma once

#include "numbers.h"
#include "team.h"

namespace {

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

constexpr int QUERIES = 4;  // that are computed together

// A query as it is held against keys, and what sixteen numbers of both add to eight sums of products.
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
using Asked = uint16_t;

inline void hold(const uint16_t* query, int64_t width, Asked* to) { std::memcpy(to, query, width * sizeof *to); }

inline __m256 add_sixteen(__m256 sums, const uint16_t* key, const Asked* query) {
  return _mm256_dpbf16_ps(sums, (__m256bh)bytes_of(key), (__m256bh)bytes_of(query));
}
#else
using Asked = float;  // the even ones of each sixteen first

inline void hold(const uint16_t* query, int64_t width, Asked* to) {
  for (int64_t i = 0; i < width; i += 2 * LANES) {
    const Halves halves(query + i);
    _mm256_storeu_ps(to + i, halves.even);
    _mm256_storeu_ps(to + i + LANES, halves.odd);
  }
}

inline __m256 add_sixteen(__m256 sums, const uint16_t* key, const Asked* query) {
  const Halves halves(key);
  return _mm256_fmadd_ps(halves.odd, _mm256_loadu_ps(query + LANES),
                         _mm256_fmadd_ps(halves.even, _mm256_loadu_ps(query), sums));
}
#endif

// What a thread needs for queries to so many tokens.
struct Scratch {
  std::vector<Asked> queries;
  std::vector<float> weights;
  std::vector<uint16_t> turned;

  Scratch(int64_t width, int64_t tokens)
      : queries(QUERIES * width), weights(QUERIES * (tokens + LANES)), turned(width) {}
};

// Q queries of one row that look at the same keys, each up to its own last one.
template <int Q>
struct Lookers {
  static constexpr int S = Q == 3 ? 4 : Q;  // weights of a key: eight of them are those of whole keys
  static constexpr int K = LANES / S;       // keys that are looked at together

  int64_t width, most = 0, counts[Q];
  float scale;
  Asked* queries;  // (Q, width)
  float* weights;  // (keys, S)
  uint16_t* to[Q];

  Lookers(int64_t w, float s, Scratch& scratch)
      : width(w), scale(s), queries(scratch.queries.data()), weights(scratch.weights.data()) {}

  void take(int q, const uint16_t* turned, int64_t count, uint16_t* result) {
    hold(turned, width, queries + q * width);
    counts[q] = count, to[q] = result, most = std::max(most, count);
  }

  void look(const uint16_t* keys, const uint16_t* values) {
    for (int64_t t = 0; t < most; t += K) weigh(keys, t);
    float per_total[Q];
    raise(per_total);
    constexpr int N = Q == 1 ? 4 : Q == 2 ? 2 : 1;  // as many sums as there are registers for
    int64_t i = 0;
    for (; i + N * 16 <= width; i += N * 16) mix<N>(values + i, per_total, i);
    for (; i < width; i += 16) mix<1>(values + i, per_total, i);
  }

 private:
  // What K keys from t on are worth to each query; those behind the last one are worth what it is.
  void weigh(const uint16_t* keys, int64_t t) {
    const uint16_t* key[K];
    for (int k = 0; k < K; ++k) key[k] = keys + std::min(t + k, most - 1) * width;
    __m256 sums[LANES];
    for (auto& one : sums) one = _mm256_setzero_ps();
    for (int64_t i = 0; i < width; i += 2 * LANES)
      for (int k = 0; k < K; ++k)
        for (int q = 0; q < Q; ++q) {
          __m256& one = sums[place(k * S + q)];
          one = add_sixteen(one, key[k] + i, queries + q * width + i);
        }
    _mm256_storeu_ps(weights + t * S, _mm256_mul_ps(_mm256_set1_ps(scale), sums8(sums)));
  }

  // Which of those that sums8() is given comes out there.
  static constexpr int place(int at) { return at < LANES / 2 ? 2 * at : 2 * at - LANES + 1; }

  // Put the exponentials in the place of the weights up to each query's last one, and 0 in the others'; one by their total,
  // which is that of every eighth key first, so that it does not depend on Q.
  void raise(float* per_total) {
    const int64_t all = (most + K - 1) / K * LANES;
    const auto fill = [&](float with) {
      for (int q = 0; q < Q; ++q)
        for (int64_t at = counts[q] * S + q; at < all; at += S) weights[at] = with;
    };
    fill(-std::numeric_limits<float>::infinity());
    __m256 tops = _mm256_loadu_ps(weights);
    for (int64_t at = LANES; at < all; at += LANES) tops = _mm256_max_ps(tops, _mm256_loadu_ps(weights + at));
    alignas(32) float top[LANES], total[S][LANES];
    _mm256_store_ps(top, tops);
    for (int at = S; at < LANES; ++at) top[at % S] = std::max(top[at % S], top[at]);
    for (int at = S; at < LANES; ++at) top[at] = top[at % S];
    tops = _mm256_load_ps(top);
    __m256 totals[S];
    for (auto& one : totals) one = _mm256_setzero_ps();
    for (int64_t at = 0; at < all; at += S * LANES)
      for (int j = 0; j < S && at + j * LANES < all; ++j) {
        const __m256 weight = exp8(_mm256_sub_ps(_mm256_loadu_ps(weights + at + j * LANES), tops));
        _mm256_storeu_ps(weights + at + j * LANES, weight);
        totals[j] = _mm256_add_ps(totals[j], weight);
      }
    fill(0.0f);
    for (int j = 0; j < S; ++j) _mm256_store_ps(total[j], totals[j]);
    for (int q = 0; q < Q; ++q) {
      alignas(32) float each[LANES];
      for (int t = 0; t < LANES; ++t) each[t] = total[t / K][t % K * S + q];
      per_total[q] = 1.0f / sum8(_mm256_load_ps(each));
    }
  }

  // The mean of the values by the weights, of 16 N numbers of each from `at` on.
  template <int N>
  void mix(const uint16_t* values, const float* per_total, int64_t at) {
    __m256 even[Q][N], odd[Q][N];
    for (int q = 0; q < Q; ++q)
      for (int n = 0; n < N; ++n) even[q][n] = odd[q][n] = _mm256_setzero_ps();
    for (int64_t t = 0; t < most; ++t, values += width)
      for (int n = 0; n < N; ++n) {
        const Halves value(values + n * 16);
        for (int q = 0; q < Q; ++q) {
          const __m256 weight = _mm256_broadcast_ss(&weights[t * S + q]);
          even[q][n] = _mm256_fmadd_ps(weight, value.even, even[q][n]);
          odd[q][n] = _mm256_fmadd_ps(weight, value.odd, odd[q][n]);
        }
      }
    for (int q = 0; q < Q; ++q)
      for (int n = 0; n < N; ++n) {
        const __m256 by = _mm256_set1_ps(per_total[q]);
        const __m256i low = _mm256_srli_epi32(narrowed(_mm256_mul_ps(even[q][n], by)), 16);
        const __m256i high = narrowed(_mm256_mul_ps(odd[q][n], by));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[q] + at + n * 16), _mm256_or_si256(low, high));
      }
  }
};

// New tokens behind rows of keys and values.
struct Sizes {
  int64_t rows, news, heads, key_heads, width, room;
  const int64_t* before;  // tokens of each row

  int64_t each() const { return rows * news; }
};

// The attention of new tokens behind each row: turned to their positions, written behind the row's keys and values, and
// held against all of them up to their own. `scratch` is of each thread. q (rows, new, heads, width), k and v (rows, new,
// key heads, width), cosine and sine (rows, new, width), keys and values (rows, key heads, room, width) ->
// y (rows, new, heads, width)
void attend(Team& team, const Sizes& size, float scale, const uint16_t* q, const uint16_t* k, const uint16_t* v,
            const uint16_t* cosine, const uint16_t* sine, uint16_t* keys, uint16_t* values, std::vector<Scratch>& scratch,
            uint16_t* y) {
  const int64_t width = size.width, heads = size.heads, key_heads = size.key_heads, news = size.news, room = size.room;
  const auto remember = [&](int64_t n, int64_t head) {
    const int64_t row = n / news, place = (row * key_heads + head) * room + size.before[row] + n % news;
    turn(k + (n * key_heads + head) * width, cosine + n * width, sine + n * width, width, keys + place * width);
    std::memcpy(values + place * width, v + (n * key_heads + head) * width, width * sizeof *v);
  };
  // The queries to a key head, token by token, are taken four at a time; late ones, which look at many keys, and early
  // ones in turn, so that threads have as much to do.
  const int64_t shared = heads / key_heads, asked = news * shared, blocks = (asked + QUERIES - 1) / QUERIES;
  const bool at_once = news == 1 && blocks == 1;  // nobody else looks at the new key
  if (!at_once)
    team.share(size.each(), std::max<int64_t>(1, WORTH_A_PIECE / (key_heads * width)), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        for (int64_t head = 0; head < key_heads; ++head) remember(n, head);
    });
  const auto answer = [&]<int Q>(int64_t row, int64_t key_head, int64_t first) {
    Lookers<Q> lookers(width, scale, scratch[team.number]);
    uint16_t* turned = scratch[team.number].turned.data();
    for (int i = 0; i < Q; ++i) {
      const int64_t token = (first + i) / shared, head = key_head * shared + (first + i) % shared, n = row * news + token;
      turn(q + (n * heads + head) * width, cosine + n * width, sine + n * width, width, turned);
      lookers.take(i, turned, size.before[row] + token + 1, y + (n * heads + head) * width);
    }
    const int64_t at = (row * key_heads + key_head) * room * width;
    lookers.look(keys + at, values + at);
  };
  team.share(size.rows * key_heads * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit % blocks, block = b % 2 ? blocks - 1 - b / 2 : b / 2, first = block * QUERIES;
      const int64_t key_head = unit / blocks % key_heads, row = unit / blocks / key_heads;
      if (at_once) remember(row, key_head);
      const int64_t count = std::min<int64_t>(QUERIES, asked - first);
      for_count<QUERIES>(count, [&]<int Q>() { answer.template operator()<Q>(row, key_head, first); });
    }
  });
}

}  // namespace
