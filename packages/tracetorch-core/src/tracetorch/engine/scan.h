// What generated scans share. States lie [channel][state] outside; inside, and where they are kept
// for the backward pass, [state][channel], so that loops over channels are over adjacent values.

template <typename real, int WIDTH>
ONCE void turn_in(real (*to)[WIDTH], const void *from, int64_t at, int64_t states, int width,
                  int count) {
    const real *values = from ? (const real *)from + at : nullptr;
    for (int i = 0; i < width; ++i)
        for (int k = 0; k < count; ++k) to[k][i] = values ? values[i * states + k] : real(0);
}
template <typename real, int WIDTH>
ONCE void turn_out(const real (*from)[WIDTH], void *to, int64_t at, int64_t states, int width,
                   int count) {
    if (!to) return;
    real *values = (real *)to + at;
    for (int i = 0; i < width; ++i)
        for (int k = 0; k < count; ++k) values[i * states + k] = from[k][i];
}
template <typename real, int WIDTH>
ONCE void keep(const real (*from)[WIDTH], void *to, int64_t at, int64_t channels, int width,
               int count) {
    if (!to) return;
    for (int k = 0; k < count; ++k)
        memcpy((real *)to + at + k * channels, from[k], width * sizeof(real));
}
template <typename real, int WIDTH>
ONCE void recall(real (*to)[WIDTH], const void *from, int64_t at, int64_t channels, int width,
                 int count) {
    for (int k = 0; k < count; ++k)
        memcpy(to[k], (const real *)from + at + k * channels, width * sizeof(real));
}
// a row of a sequence: sums over this tile's states, added to what the tiles before it gave
template <typename real>
INLINE void put(const real *from, void *to, int64_t at, int width, bool first) {
    if (!to) return;
    real *values = (real *)to + at;
    for (int i = 0; i < width; ++i) values[i] = first ? from[i] : values[i] + from[i];
}
