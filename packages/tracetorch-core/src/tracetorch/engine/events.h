// A product with a matrix as the sum of those of its rows whose input is not zero.

// bytes of a vector, vectors of a block of outputs, inputs whose weights for a block stay in the
// first-level cache
#if defined(__AVX512F__)
enum { BYTES = 64, VECTORS = 16, TILE = 32 };
#elif defined(__AVX__)
enum { BYTES = 32, VECTORS = 8, TILE = 64 };
#else
enum { BYTES = 16, VECTORS = 8, TILE = 64 };
#endif

// samples that share what is read of the weights, inputs whose weights for a block stay in the
// second-level cache meanwhile, inputs that are looked through at a time, events before which a row
// is asked for, bytes that are fetched at once, rows that are read together, outputs that stay in
// the first-level cache
enum {
    PANEL = 64, ROWS = (512 << 10) / (BYTES * VECTORS), LOOKED_AT = 1 << 18, AHEAD = 2, LINE = 64,
    TOGETHER = 4, NEAR = 2048
};
// events of a sample for which its outputs are read and written, and those of a row in a panel for
// which it is copied: rows lie far apart, often so that few of them fit into a cache
enum { FULL = 32, COPY = 3 };
// additions below which other threads take longer to wake than the work takes
enum { ALONE = 1 << 20 };
enum { BATCH, INPUTS, OUTPUTS, MOST, SAMPLES, SPLITS, HEIGHT, COPIED, SIZES };

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// How many of the values are not zero; where they are more than `most`, only that.
template <typename real> static int64_t counted(const real *x, int64_t size, int64_t most) {
    int64_t count = 0;
    for (int64_t first = 0; first < size && count <= most; first += 4096) {
        const int64_t end = least(first + 4096, size);
        int here = 0;
#pragma omp simd reduction(+ : here)
        for (int64_t i = first; i < end; ++i) here += x[i] != 0;
        count += here;
    }
    return count;
}

template <typename real> struct Events {
    typedef real vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));
    enum { LANES = BYTES / sizeof(real), WIDE = VECTORS * LANES, IN_LINE = LINE / sizeof(real) };

    // those of the samples of a panel by their place in a tile of inputs, and where those of sample
    // and tile begin
    std::vector<int32_t> places;
    std::vector<real> values;
    std::vector<int64_t> begin;
    const real *weight, *bias;
    int64_t inputs, outputs, height, tiles;

    void list(const real *x, int64_t samples) {
        const size_t most = size_t(samples * inputs + 1), cells = size_t(samples * tiles + 1);
        if (places.size() < most) places.resize(most), values.resize(most);
        if (begin.size() < cells) begin.resize(cells);
        int32_t *const place = places.data();
        real *const value = values.data();
        int64_t count = 0, cell = 0;
        for (int64_t sample = 0; sample < samples; ++sample, x += inputs)
            for (int64_t first = 0; first < inputs; first += height) {
                begin[cell++] = count;
                for (int64_t i = first; i < least(first + height, inputs); ++i) {
                    place[count] = int32_t(i - first);
                    value[count] = x[i];
                    count += x[i] != 0;
                }
            }
        begin[cell] = count;
    }

    // The events of a cell into V vectors of a sample's outputs; `rows` is the tile's first one.
    template <int V, bool ASK>
    void add(real *y, int64_t cell, int64_t at, const real *rows, int64_t stride) const {
        const bool begun = cell % tiles;
        vector sum[V];
        for (int v = 0; v < V; ++v) {
            const int64_t lane = at + v * LANES;
            sum[v] = begun ? *(const vector *)(y + lane)
                           : bias ? *(const vector *)(bias + lane) : vector{};
        }
        const int64_t end = begin[cell + 1];
        for (int64_t event = begin[cell]; event < end; ++event) {
            const real *const row = rows + places[event] * stride;
            if (ASK) {
                const real *const later = rows + places[least(event + AHEAD, end - 1)] * stride;
                for (int v = 0; v < V; v += LINE / BYTES) __builtin_prefetch(later + v * LANES);
            }
            const real value = values[event];
            for (int v = 0; v < V; ++v) sum[v] += value * *(const vector *)(row + v * LANES);
        }
        for (int v = 0; v < V; ++v) *(vector *)(y + at + v * LANES) = sum[v];
    }

    // The same for the last ones, fewer than a vector.
    void add_rest(real *y, int64_t cell, int64_t at, const real *rows, int64_t stride) const {
        const int width = int(outputs - at);
        real sum[LANES];
        for (int i = 0; i < width; ++i) sum[i] = cell % tiles ? y[at + i] : bias ? bias[at + i] : 0;
        for (int64_t event = begin[cell]; event < begin[cell + 1]; ++event) {
            const real *const row = rows + places[event] * stride;
            for (int i = 0; i < width; ++i) sum[i] += values[event] * row[i];
        }
        for (int i = 0; i < width; ++i) y[at + i] = sum[i];
    }

    template <bool ASK>
    void add_block(real *y, int64_t cell, int64_t at, const real *rows, int64_t stride) const {
        const int64_t end = least(at + WIDE, outputs);
        if (at + WIDE == end) return add<VECTORS, ASK>(y, cell, at, rows, stride);
        for (; at + 4 * LANES <= end; at += 4 * LANES, rows += 4 * LANES)
            add<4, ASK>(y, cell, at, rows, stride);
        for (; at + LANES <= end; at += LANES, rows += LANES) add<1, ASK>(y, cell, at, rows, stride);
        if (at < end) add_rest(y, cell, at, rows, stride);
    }

    // All events of one sample into outputs that stay in the first-level cache: a few rows at a
    // time, each read as it lies in memory.
    void stream(real *y, int64_t from, int64_t to) const {
        for (int64_t i = from; i < to; ++i) y[i] = bias ? bias[i] : 0;
        const int64_t end = begin[1];
        int64_t event = 0;
        for (; event + TOGETHER <= end; event += TOGETHER) {
            const real *row[TOGETHER], *later[TOGETHER];
            real value[TOGETHER];
            for (int k = 0; k < TOGETHER; ++k) {
                row[k] = weight + places[event + k] * outputs;
                later[k] = weight + places[least(event + k + TOGETHER, end - 1)] * outputs;
                value[k] = values[event + k];
            }
            int64_t i = from;
            for (; i + IN_LINE <= to; i += IN_LINE) {
                for (int k = 0; k < TOGETHER; ++k) __builtin_prefetch(later[k] + i);
                for (int v = 0; v < IN_LINE; v += LANES) {
                    vector sum = *(const vector *)(y + i + v);
                    for (int k = 0; k < TOGETHER; ++k)
                        sum += value[k] * *(const vector *)(row[k] + i + v);
                    *(vector *)(y + i + v) = sum;
                }
            }
            for (; i < to; ++i)
                for (int k = 0; k < TOGETHER; ++k) y[i] += value[k] * row[k][i];
        }
        for (; event < end; ++event) {
            const real *const row = weight + places[event] * outputs, value = values[event];
            for (int64_t i = from; i < to; ++i) y[i] += value * row[i];
        }
    }

    // A block of outputs of all samples of the panel, for a tile of inputs.
    void block(real *y, int64_t samples, int64_t tile, int64_t at, bool copied) const {
        const real *rows = weight + tile * height * outputs + at;
        int64_t cell = tile;
        if (copied) {
            alignas(LINE) real copy[TILE * WIDE];
            const int64_t width = least(WIDE, outputs - at);
            const int64_t here = least(height, inputs - tile * height);
            for (int64_t i = 0; i < here; ++i)
                memcpy(copy + i * WIDE, rows + i * outputs, size_t(width) * sizeof(real));
            for (; samples--; y += outputs, cell += tiles) add_block<false>(y, cell, at, copy, WIDE);
            return;
        }
        add_block<true>(y, cell, at, rows, outputs);
        while (--samples) add_block<false>(y += outputs, cell += tiles, at, rows, outputs);
    }
};

// A part of the outputs of a panel of samples.
template <typename real>
static void product(void **pointers, const int64_t *sizes, int64_t unit, int) {
    static thread_local Events<real> events;
    const int64_t inputs = sizes[INPUTS], outputs = sizes[OUTPUTS], splits = sizes[SPLITS];
    const int64_t first = unit / splits * sizes[SAMPLES], split = unit % splits;
    const int64_t samples = least(sizes[SAMPLES], sizes[BATCH] - first);
    events.weight = (const real *)pointers[1];
    events.bias = (const real *)pointers[2];
    events.inputs = inputs;
    events.outputs = outputs;
    events.height = samples == 1 ? inputs : sizes[HEIGHT];
    events.tiles = parts(inputs, events.height);
    events.list((const real *)pointers[0] + first * inputs, samples);
    real *const y = (real *)pointers[3] + first * outputs;
    const int64_t wide = Events<real>::WIDE, blocks = parts(outputs, wide);
    const int64_t from = blocks * split / splits * wide;
    const int64_t to = least(blocks * (split + 1) / splits * wide, outputs);
    if (samples == 1) {
        for (int64_t at = from; at < to; at += NEAR)
            events.stream(y, at, least(at + NEAR, to));
        return;
    }
    for (int64_t tile = 0; tile < events.tiles; ++tile)
        for (int64_t at = from; at < to; at += wide)
            events.block(y, samples, tile, at, sizes[COPIED]);
}

template <typename real>
static int64_t linear(void **pointers, const int64_t *given, int threads) {
    int64_t sizes[SIZES];
    for (int i = 0; i < SAMPLES; ++i) sizes[i] = given[i];
    const int64_t batch = sizes[BATCH], inputs = sizes[INPUTS], outputs = sizes[OUTPUTS];
    const int64_t count = counted((const real *)pointers[0], batch * inputs, sizes[MOST]);
    if (count > sizes[MOST]) return 0;
    if (count * outputs < ALONE) threads = 1;
    const int64_t roomy = LOOKED_AT / inputs > 1 ? LOOKED_AT / inputs : 1;
    sizes[SAMPLES] = least(batch, least(PANEL, roomy));
    sizes[COPIED] = count * sizes[SAMPLES] >= COPY * batch * inputs;
    const int64_t full = FULL * batch * inputs / (count + 1);
    sizes[HEIGHT] = sizes[COPIED] || full < TILE ? int64_t(TILE) : least(full, ROWS);
    const int64_t panels = parts(batch, sizes[SAMPLES]);
    sizes[SPLITS] = least(parts(threads, panels), parts(outputs, Events<real>::WIDE));
    run_blocks(product<real>, pointers, sizes, panels * sizes[SPLITS], 1, 1, threads);
    return 1;
}

// pointers: x [B, inputs], weight [inputs, outputs], bias [outputs] or null, y [B, outputs]; sizes:
// B, inputs, outputs, and of how many inputs at most that are not zero: of more, nothing is done.
extern "C" int64_t run_float(void **pointers, const int64_t *sizes, int threads) {
    return linear<float>(pointers, sizes, threads);
}
extern "C" int64_t run_double(void **pointers, const int64_t *sizes, int threads) {
    return linear<double>(pointers, sizes, threads);
}
