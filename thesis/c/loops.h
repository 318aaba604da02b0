/* The frame t of a ring, whose size is a power of two. */
#define DDSP_ROW(ring, t) (ring)[(size_t)(t) & (sizeof(ring) / sizeof *(ring) - 1)]

/* What compilers need to know to vectorise. DDSP_LANES precedes short loops, which gcc unrolls
   otherwise, and then finds nothing to vectorise. DDSP_APART is for functions that are inlined at
   a loss: gcc then vectorises a loop that is around their own. */
#define DDSP_RESTRICT __restrict
#if defined(__GNUC__) && !defined(__clang__)
#define DDSP_LANES _Pragma("GCC unroll 1")
#define DDSP_APART __attribute__((noinline))
#else
#define DDSP_LANES
#define DDSP_APART
#endif
