// What generated kernels share: 16-bit storage, elementary functions that vectorise, threads.
// Relative error of math:: below 3 ulp; NaN and infinities come out as from the C library.
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
// what a kernel calls for each of its arrays, outside its inner loops: compiled once, not at each
// call, which takes half of a compiler's time for a kernel of many
#define ONCE static __attribute__((noinline))

struct bfloat16 { uint16_t bits; };

INLINE float load(float v) { return v; }
INLINE double load(double v) { return v; }
INLINE float load(bfloat16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
INLINE void store(float *to, float v) { *to = v; }
INLINE void store(double *to, double v) { *to = v; }
INLINE void store(bfloat16 *to, float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to->bits = uint16_t(v == v ? rounded : 0x7fc0);
}
#ifdef TRACETORCH_HALF
typedef _Float16 float16;
INLINE float load(float16 v) { return float(v); }
INLINE void store(float16 *to, float v) { *to = float16(v); }
#endif

template <typename real> struct format;
template <> struct format<float> {
    typedef uint32_t word;
    enum { mantissa = 23, bias = 127, exponent_bits = 9, exp_terms = 7, log_terms = 6 };
    static constexpr float round = 12582912.f, lowest = -104.f, highest = 89.f,
                           ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f,
                           least_normal = 1.17549435e-38f;
};
template <> struct format<double> {
    typedef uint64_t word;
    enum { mantissa = 52, bias = 1023, exponent_bits = 12, exp_terms = 13, log_terms = 12 };
    static constexpr double round = 6755399441055744.0, lowest = -746.0, highest = 710.0,
                            ln2_high = 6.93147180369123816490e-01,
                            ln2_low = 1.90821492927058770002e-10,
                            least_normal = 2.2250738585072014e-308;
};

namespace math {

template <typename real> INLINE typename format<real>::word bits_of(real v) {
    typename format<real>::word out;
    memcpy(&out, &v, sizeof v);
    return out;
}
template <typename real> INLINE real of_bits(typename format<real>::word v) {
    real out;
    memcpy(&out, &v, sizeof v);
    return out;
}
template <typename real> INLINE real power_of_two(typename format<real>::word exponent) {
    typedef format<real> f;
    return of_bits<real>((exponent + typename f::word(f::bias)) << f::mantissa);
}

// a * b + c, in one rounding where the machine has it: for the functions here alone
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
template <typename real> INLINE real fma(real a, real b, real c) { return a * b + c; }
#endif

// (e^r - 1) / r by Taylor's series, |r| <= ln(2) / 2: terms FIRST and on of 1 / (k + 1)!, halved
// again and again, so that a few steps wait for each other and not all
template <typename real> constexpr real factorial(int n) {
    return n < 2 ? real(1) : real(n) * factorial<real>(n - 1);
}
template <typename real, int FIRST, int COUNT> struct Series {
    enum { HALF = COUNT > 8 ? 8 : COUNT > 4 ? 4 : COUNT > 2 ? 2 : 1 };
    INLINE real at(real r, real r2, real r4, real r8) {
        return fma(HALF == 8 ? r8 : HALF == 4 ? r4 : HALF == 2 ? r2 : r,
                   Series<real, FIRST + HALF, COUNT - HALF>::at(r, r2, r4, r8),
                   Series<real, FIRST, HALF>::at(r, r2, r4, r8));
    }
};
template <typename real, int FIRST> struct Series<real, FIRST, 1> {
    static constexpr real factor = real(1) / factorial<real>(FIRST + 1);
    INLINE real at(real, real, real, real) { return factor; }
};
template <typename real> INLINE real exp_series(real r) {
    const real r2 = r * r, r4 = r2 * r2, r8 = r4 * r4;
    return Series<real, 0, format<real>::exp_terms>::at(r, r2, r4, r8);
}

// e^x = 2^k e^r; 2^k in two factors, so that subnormal results are reached
template <typename real> INLINE real exp(real x) {
    typedef format<real> f;
    typedef typename f::word word;
    const real limited = x < f::lowest ? f::lowest : (x > f::highest ? f::highest : x);
    const real shifted = fma(limited, real(1.4426950408889634074), f::round);
    const real k = shifted - f::round;
    const real r = fma(-k, f::ln2_low, fma(-k, f::ln2_high, limited));
    const word whole = bits_of(shifted) - bits_of(f::round);
    const word half = (whole + (word(1) << 20)) / 2 - (word(1) << 19);
    return fma(r, exp_series(r), real(1)) * power_of_two<real>(half) * power_of_two<real>(whole - half);
}

template <typename real> INLINE real expm1(real x) {
    const real small = x * exp_series(x), large = exp(x) - real(1);
    return (x < real(0.34) && x > real(-0.34)) ? small : large;
}

template <typename real> INLINE real log(real x) {
    typedef format<real> f;
    typedef typename f::word word;
    const real lifted = x < f::least_normal ? x * power_of_two<real>(f::mantissa) : x;
    const word offset = bits_of(real(0.70710678118654752440));
    const word whole = bits_of(lifted) - offset;
    const word exponent = whole >> f::mantissa;
    const real m = of_bits<real>((whole & ((word(1) << f::mantissa) - 1)) + offset);
    const real s = (m - real(1)) / (m + real(1)), q = s * s;
    real sum = 0;
    for (int k = f::log_terms; k > 0; --k) sum = (sum + real(1) / real(2 * k + 1)) * q;
    const word wide = word(1) << (f::exponent_bits - 1);
    const real k = of_bits<real>(bits_of(f::round) + ((exponent + wide) & (2 * wide - 1)) - wide) -
                   f::round - (x < f::least_normal ? real(f::mantissa) : real(0));
    const real finite = k * f::ln2_high + (real(2) * s + real(2) * s * sum + k * f::ln2_low);
    const real infinite = x == real(0) ? -__builtin_inf() : (x > real(0) ? x : __builtin_nan(""));
    return (x > real(0) && x < real(__builtin_inf())) ? finite : infinite;
}

template <typename real> INLINE real log1p(real x) {
    const real u = real(1) + x, exact = log(u) * (x / (u - real(1)));
    return (u == real(1) || x == real(__builtin_inf())) ? x : exact;
}
template <typename real> INLINE real abs(real x) { return x < real(0) ? -x : x + real(0); }
template <typename real> INLINE real sigmoid(real x) { return real(1) / (real(1) + exp(-x)); }
template <typename real> INLINE real tanh(real x) {
    const real t = expm1(real(-2) * abs(x)), magnitude = -t / (real(2) + t);
    return x < real(0) ? -magnitude : (x == real(0) ? x : magnitude);
}

#define LIBRARY(name, builtin)                                                    \
    INLINE float name(float x) { return __builtin_##builtin##f(x); }              \
    INLINE double name(double x) { return __builtin_##builtin(x); }
LIBRARY(exp2, exp2)
LIBRARY(log2, log2)
LIBRARY(sqrt, sqrt)
LIBRARY(sin, sin)
LIBRARY(cos, cos)
LIBRARY(atan, atan)
LIBRARY(erf, erf)
LIBRARY(floor, floor)
LIBRARY(ceil, ceil)
LIBRARY(trunc, trunc)
LIBRARY(round, rint)
#undef LIBRARY
template <typename real> INLINE real rsqrt(real x) { return real(1) / sqrt(x); }
INLINE float pow(float x, float y) { return __builtin_powf(x, y); }
INLINE double pow(double x, double y) { return __builtin_pow(x, y); }

}  // namespace math

// one value per lane from one per neuron (stride 1) or one for all (stride 0)
template <typename real>
ONCE void gather(real *to, int width, const void *from, int64_t stride, int64_t lane, int rest,
                 int64_t neurons, int64_t inner) {
    const real *values = (const real *)from;
    int64_t neuron = lane / inner % neurons, place = lane % inner;
    if (!stride) {
        for (int i = 0; i < width; ++i) to[i] = values[0];
        return;
    }
    if (inner == 1) {
        for (int i = 0; i < width;) {
            const int64_t left = neurons - neuron, count = left < width - i ? left : width - i;
            memcpy(to + i, values + neuron, count * sizeof(real));
            i += int(count), neuron = 0;
        }
        return;
    }
    for (int i = 0; i < width; ++i) {
        to[i] = values[neuron];
        if (i < rest && ++place == inner) {
            place = 0;
            neuron = neuron + 1 == neurons ? 0 : neuron + 1;
        }
    }
}
template <typename real>
ONCE void take(real *to, int width, const void *from, int64_t at, int rest) {
    if (!from) rest = 0;
    if (rest) memcpy(to, (const real *)from + at, rest * sizeof(real));
    for (int i = rest; i < width; ++i) to[i] = 0;
}
template <typename real> ONCE void give(const real *from, void *to, int64_t at, int rest) {
    if (to) memcpy((real *)to + at, from, rest * sizeof(real));
}
// what comes to a state from its own sequence, where that is not null
template <typename real> ONCE void add(real *to, const void *from, int64_t at, int rest) {
    if (!from) return;
    for (int i = 0; i < rest; ++i) to[i] += ((const real *)from)[at + i];
}

// A sequence that caches of today cannot hold beside another streams: it is written past them, for
// what is written through them is read first, a third of all that is moved; and what comes next is
// asked for ahead, for its rows are pages apart. Rows have to begin with a line of the caches.
template <typename stored>
INLINE bool past_caches(const stored *sequence, int64_t steps, int64_t lanes) {
#ifdef __SSE2__
    const int64_t row = lanes * int64_t(sizeof(stored));
    return (uintptr_t(sequence) | uintptr_t(row)) % 64 == 0 && steps * row > 12 << 20;
#else
    return false;
#endif
}
template <int COUNT, typename stored> INLINE void stream(stored *to, const stored *from) {
#ifdef __SSE2__
    for (int i = 0; i < COUNT * int(sizeof(stored)); i += 16)
        _mm_stream_ps((float *)((char *)to + i), _mm_load_ps((const float *)((const char *)from + i)));
#endif
}
template <int COUNT, typename stored> INLINE void ahead(const stored *row) {
    for (int i = 0; i < COUNT * int(sizeof(stored)); i += 64) __builtin_prefetch((const char *)row + i);
}
// a state, as it is after a timestep, into its own sequence; it begins with a line of the caches
template <typename real>
INLINE void give_row(const real *from, void *to, int64_t at, int rest, bool streams) {
    if (!streams) return give(from, to, at, rest);
#ifdef __SSE2__
    for (int i = 0; i < rest * int(sizeof(real)); i += 16)
        _mm_stream_ps((float *)((char *)((real *)to + at) + i),
                      _mm_load_ps((const float *)((const char *)from + i)));
#endif
}
INLINE void streamed() {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

// a parameter's gradient from that of each lane, for one value per neuron (stride 1) or one for all
template <typename real>
ONCE void sum_lanes(const void *from, void *to, int64_t lanes, int64_t neurons, int64_t inner,
                    int64_t stride) {
    const real *parts = (const real *)from;
    real *sums = (real *)to;
    if (!stride) {
        double total = 0;
        for (int64_t i = 0; i < lanes; ++i) total += parts[i];
        sums[0] = real(total);
        return;
    }
    const int64_t rows = neurons * inner ? lanes / (neurons * inner) : 0;
    enum { MANY = 512 };
    for (int64_t n = 0; n < neurons; n += MANY) {
        const int count = neurons - n < MANY ? int(neurons - n) : int(MANY);
        double total[MANY] = {};
        for (int64_t row = 0; row < rows; ++row) {
            const real *own = parts + (row * neurons + n) * inner;
            if (inner == 1)
                for (int i = 0; i < count; ++i) total[i] += own[i];
            else
                for (int i = 0; i < count; ++i)
                    for (int64_t j = 0; j < inner; ++j) total[i] += own[i * inner + j];
        }
        for (int i = 0; i < count; ++i) sums[n + i] = real(total[i]);
    }
}

// Random numbers: see tracetorch.randomness, which computes the same in torch's operations.
INLINE uint32_t mixed(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}
INLINE uint32_t random_lane(const int64_t *seed_and_count, int64_t lane, int64_t neurons,
                            int64_t inner) {
    const int64_t row = lane / (neurons * inner) * inner + lane % inner;
    return mixed(uint32_t(row * neurons + lane / inner % neurons + seed_and_count[0]));
}
INLINE uint32_t random_key(const int64_t *seed_and_count, int64_t t, uint32_t draw) {
    const uint32_t time = mixed(uint32_t(seed_and_count[1] + t) ^ uint32_t(seed_and_count[0] >> 32));
    return mixed(time + draw * 0x9e3779b9u);
}
template <typename real> INLINE real uniform(uint32_t lane, uint32_t key) {
    return real(int32_t(mixed(lane ^ key) >> 8)) * real(0x1p-24);
}

// Samples that restart before a timestep, for a block of lanes: of each its lanes are neighbours.
// Null: none ever does.
struct Restarts {
    const uint8_t *flags;
    int64_t samples, per, first, count, begin;
    int rest;
    Restarts(const void *all, int64_t per, int64_t lanes, int64_t lane, int rest)
        : flags((const uint8_t *)all), samples(lanes / per), per(per), first(lane / per),
          count((lane + rest - 1) / per - first + 1), begin(first * per - lane), rest(rest) {}
    template <typename... Arrays> void clear(int64_t t, Arrays *...arrays) const {
        if (!flags) return;
        const uint8_t *own = flags + t * samples + first;
        if (!memchr(own, 1, size_t(count))) return;
        const int done[] = {(zero(arrays, own), 0)...};
        (void)done;
    }
    template <typename real>
    __attribute__((noinline)) void zero(real *array, const uint8_t *own) const {
        if (per == 1) {  // a lane each
            for (int i = 0; i < rest; ++i) array[i] = own[i] ? real(0) : array[i];
            return;
        }
        for (int64_t s = 0; s < count; ++s) {
            if (!own[s]) continue;
            const int64_t low = begin + s * per, high = low + per;
            const int64_t from = low < 0 ? 0 : low, to = high < rest ? high : rest;
            for (int64_t i = from; i < to; ++i) array[i] = real(0);
        }
    }
};

typedef void (*Block)(void **pointers, const int64_t *sizes, int64_t lane, int rest);
struct Work {
    Block block;
    void **pointers;
    const int64_t *sizes;
    int64_t lanes, width, blocks, next;
};
static void take_blocks(void *argument) {
    Work *work = (Work *)argument;
    for (int64_t b; (b = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->blocks;)
        {
            const int64_t lane = b * work->width, rest = work->lanes - lane;
            work->block(work->pointers, work->sizes, lane, int(rest < work->width ? rest : work->width));
        }
}
static void *take_blocks_in_thread(void *argument) {
    take_blocks(argument);
    return nullptr;
}
// Blocks of lanes, as wide as leaves some for every thread, go to whoever is free: the threads
// torch keeps for its own operations where they can be reached (GNU OpenMP), else threads made
// here; one that cannot be had is done without.
static void run_blocks(Block block, void **pointers, const int64_t *sizes, int64_t lanes,
                       int64_t width, int64_t narrowest, int threads) {
    while (width > narrowest && lanes < width * threads) width /= 2;
    Work work = {block, pointers, sizes, lanes, width, (lanes + width - 1) / width, 0};
    if (threads > work.blocks) threads = int(work.blocks);
    if (threads > 256) threads = 256;
    typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
    static const Parallel parallel = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (threads > 1 && parallel) {
        parallel(take_blocks, &work, unsigned(threads), 0);
        return;
    }
    pthread_t others[256];
    int started = 0;
    // a block's arrays are on the stack, and some systems give a thread little of it
    pthread_attr_t roomy;
    pthread_attr_init(&roomy);
    pthread_attr_setstacksize(&roomy, 4 << 20);
    while (started + 1 < threads &&
           pthread_create(&others[started], &roomy, take_blocks_in_thread, &work) == 0)
        ++started;
    pthread_attr_destroy(&roomy);
    take_blocks(&work);
    while (started > 0) pthread_join(others[--started], nullptr);
}
