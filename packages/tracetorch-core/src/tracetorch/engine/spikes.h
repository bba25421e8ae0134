// Spikes as bits: one plane says where a value is not zero, another one where it is negative.
// Values are compared as they are in memory, so what is packed comes back bit for bit. Stands
// after prelude.h, `word` (an unsigned integer as wide as a value), ONE and TOP (1, a sign alone).

enum { BITS = 32, WIDTH = 1 << 15, NARROWEST = 1024, ALONE = 131072 };

struct Planes { uint32_t some, minus, other; };

INLINE Planes packed(const word *values, int count) {
    uint32_t some = 0, minus = 0, other = 0;
#pragma omp simd reduction(| : some, minus, other)
    for (int i = 0; i < count; ++i) {
        const word value = values[i], size = word(value & word(~TOP));
        some |= uint32_t(value != 0) << i;
        minus |= uint32_t(value >= TOP) << i;
        other |= uint32_t((value != 0) & (size != ONE));
    }
    return {some, minus, other};
}
INLINE void unpacked(word *values, int count, uint32_t some, uint32_t minus) {
#pragma omp simd
    for (int i = 0; i < count; ++i)
        values[i] = word((some >> i & 1 ? ONE : word(0)) | (minus >> i & 1 ? TOP : word(0)));
}

// pointers: values, the planes one behind the other, two words: whether there was a value that is
// no spike, whether a negative one. sizes: values, words of a plane, planes to unpack or 0.
static void pack_block(void **pointers, const int64_t *sizes, int64_t first, int rest) {
    uint32_t *const planes = (uint32_t *)pointers[1], *const found = (uint32_t *)pointers[2];
    uint32_t negative = 0;
    for (int64_t at = first; at < first + rest; at += BITS) {
        const word *const here = (const word *)pointers[0] + at;
        const int count = int(first + rest - at < BITS ? first + rest - at : BITS);
        const Planes got = count == BITS ? packed(here, BITS) : packed(here, count);
        planes[at / BITS] = got.some;
        planes[sizes[1] + at / BITS] = got.minus;
        negative |= got.minus;
        if (got.other) __atomic_store_n(&found[0], 1, __ATOMIC_RELAXED);
        // what is no spikes mostly shows it at once
        if (got.other || (at % 1024 == 0 && __atomic_load_n(&found[0], __ATOMIC_RELAXED))) return;
    }
    if (negative) __atomic_store_n(&found[1], 1, __ATOMIC_RELAXED);
}
static void unpack_block(void **pointers, const int64_t *sizes, int64_t first, int rest) {
    const uint32_t *const planes = (const uint32_t *)pointers[1];
    for (int64_t at = first; at < first + rest; at += BITS) {
        word *const here = (word *)pointers[0] + at;
        const int count = int(first + rest - at < BITS ? first + rest - at : BITS);
        const uint32_t some = planes[at / BITS];
        const uint32_t minus = sizes[2] == 2 ? planes[sizes[1] + at / BITS] : 0;
        if (count == BITS) unpacked(here, BITS, some, minus);
        else unpacked(here, count, some, minus);
    }
}

extern "C" void run(void **pointers, const int64_t *sizes, int threads) {
    if (sizes[0] < ALONE) threads = 1;
    const Block block = sizes[2] ? unpack_block : pack_block;
    run_blocks(block, pointers, sizes, sizes[0], WIDTH, NARROWEST, threads);
}
