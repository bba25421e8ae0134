// A product with a matrix as the sum of those of its rows whose input is not zero.

#if defined(__AVX512F__)
enum { BYTES = 64, VECTORS = 16 };
#elif defined(__AVX__)
enum { BYTES = 32, VECTORS = 8 };
#else
enum { BYTES = 16, VECTORS = 8 };
#endif

// samples that share what is read of the weights, rows of weights that stay in the second-level
// cache meanwhile, inputs that are looked through at a time, events before which a row is asked for
enum { PANEL = 64, ROWS = (512 << 10) / (BYTES * VECTORS), LOOKED_AT = 1 << 18, AHEAD = 2 };
// additions below which other threads take longer to wake than the work takes
enum { ALONE = 1 << 20 };
enum { BATCH, INPUTS, OUTPUTS, MOST, SAMPLES, SPLITS, SIZES };

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
    enum { LANES = BYTES / sizeof(real), WIDE = VECTORS * LANES };

    // those of the samples of a panel, and where those of sample and tile of inputs begin
    std::vector<int32_t> neurons;
    std::vector<real> values;
    std::vector<int64_t> begin;
    const real *weight, *bias;
    int64_t outputs, rows, tiles;

    void list(const real *x, int64_t samples, int64_t inputs) {
        rows = samples > 1 ? int64_t(ROWS) : inputs;
        tiles = parts(inputs, rows);
        const size_t most = size_t(samples * inputs + 1), cells = size_t(samples * tiles + 1);
        if (neurons.size() < most) neurons.resize(most), values.resize(most);
        if (begin.size() < cells) begin.resize(cells);
        int32_t *const neuron = neurons.data();
        real *const value = values.data();
        int64_t count = 0, cell = 0;
        for (int64_t sample = 0; sample < samples; ++sample, x += inputs)
            for (int64_t first = 0; first < inputs; first += rows) {
                begin[cell++] = count;
                for (int64_t i = first; i < least(first + rows, inputs); ++i) {
                    neuron[count] = int32_t(i);
                    value[count] = x[i];
                    count += x[i] != 0;
                }
            }
        begin[cell] = count;
    }

    // The events of a cell into V vectors of a sample's outputs.
    template <int V> void add(real *y, int64_t cell, int64_t at) const {
        const bool begun = cell % tiles;
        vector sum[V];
        for (int v = 0; v < V; ++v) {
            const int64_t lane = at + v * LANES;
            sum[v] = begun ? *(const vector *)(y + lane)
                           : bias ? *(const vector *)(bias + lane) : vector{};
        }
        const int64_t end = begin[cell + 1];
        for (int64_t event = begin[cell]; event < end; ++event) {
            const real *const row = weight + neurons[event] * outputs + at;
            const real *const later = weight + neurons[least(event + AHEAD, end - 1)] * outputs + at;
            for (int v = 0; v < V; ++v) __builtin_prefetch(later + v * LANES);
            const real value = values[event];
            for (int v = 0; v < V; ++v) sum[v] += value * *(const vector *)(row + v * LANES);
        }
        for (int v = 0; v < V; ++v) *(vector *)(y + at + v * LANES) = sum[v];
    }

    // The same for the last ones, fewer than a vector.
    void add_rest(real *y, int64_t cell, int64_t at) const {
        const int width = int(outputs - at);
        real sum[LANES];
        for (int i = 0; i < width; ++i) sum[i] = cell % tiles ? y[at + i] : bias ? bias[at + i] : 0;
        for (int64_t event = begin[cell]; event < begin[cell + 1]; ++event) {
            const real *const row = weight + neurons[event] * outputs + at;
            for (int i = 0; i < width; ++i) sum[i] += values[event] * row[i];
        }
        for (int i = 0; i < width; ++i) y[at + i] = sum[i];
    }

    void add_block(real *y, int64_t cell, int64_t block) const {
        int64_t at = block * WIDE;
        const int64_t end = least(at + WIDE, outputs);
        if (at + WIDE == end) return add<VECTORS>(y, cell, at);
        for (; at + 4 * LANES <= end; at += 4 * LANES) add<4>(y, cell, at);
        for (; at + LANES <= end; at += LANES) add<1>(y, cell, at);
        if (at < end) add_rest(y, cell, at);
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
    events.outputs = outputs;
    events.list((const real *)pointers[0] + first * inputs, samples, inputs);
    real *const y = (real *)pointers[3] + first * outputs;
    const int64_t blocks = parts(outputs, Events<real>::WIDE);
    for (int64_t block = blocks * split / splits; block < blocks * (split + 1) / splits; ++block)
        for (int64_t tile = 0; tile < events.tiles; ++tile)
            for (int64_t sample = 0; sample < samples; ++sample)
                events.add_block(y + sample * outputs, sample * events.tiles + tile, block);
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
