/* ---- Reverb: partitioned convolution without latency ----
 *
 * The response is cut into partitions of a frame, and further back of DDSP_TAIL_FRAMES frames. A
 * window of two blocks is transformed, multiplied with each partition and transformed back: its
 * second half is the sound of the newer block. The transform is the value of a polynomial at those
 * roots of -1 that are no conjugates of each other ("right-angle convolution"): a complex FFT of
 * half the window, whose real part is the older block and whose imaginary part the newer one.
 * Spectra are in bit-reversed order, [real parts, imaginary parts].
 */

/* One pass of a radix-2 FFT of constant geometry (Pease 1968), forward. */
static inline void ddsp_fft_pass(const float *DDSP_RESTRICT x, float *DDSP_RESTRICT y,
                                 const float *DDSP_RESTRICT twiddles, int size)
{
    const int half = size / 2;
    for (int i = 0; i < half; i++) {
        const float a_re = x[i], a_im = x[size + i], b_re = x[half + i], b_im = x[size + half + i];
        const float re = a_re - b_re, im = a_im - b_im;
        const float w_re = twiddles[i], w_im = twiddles[half + i];
        y[2 * i] = a_re + b_re;
        y[2 * i + 1] = re * w_re - im * w_im;
        y[size + 2 * i] = a_im + b_im;
        y[size + 2 * i + 1] = re * w_im + im * w_re;
    }
}

/* The inverse of that pass, times two. */
static inline void ddsp_ifft_pass(const float *DDSP_RESTRICT x, float *DDSP_RESTRICT y,
                                  const float *DDSP_RESTRICT twiddles, int size)
{
    const int half = size / 2;
    for (int i = 0; i < half; i++) {
        const float a_re = x[2 * i], a_im = x[size + 2 * i];
        const float b_re = x[2 * i + 1], b_im = x[size + 2 * i + 1];
        const float w_re = twiddles[i], w_im = twiddles[half + i];
        const float re = b_re * w_re + b_im * w_im, im = b_im * w_re - b_re * w_im;
        y[i] = a_re + re;
        y[size + i] = a_im + im;
        y[half + i] = a_re - re;
        y[size + half + i] = a_im - im;
    }
}

/* Transforms a window of two blocks of n samples, n <= size. `spectrum` and `work` are
   [2 * size]. */
static inline void ddsp_transform(float *spectrum, float *work, const float *older,
                                  const float *newer, int n, const float *twist,
                                  const float *twiddles, int size)
{
    float *x = spectrum, *y = work, *done;
    memset(x, 0, 2 * (size_t)size * sizeof *x);
    for (int i = 0; i < n; i++) {
        const int at = size - n + i;
        x[at] += older[i] * twist[at];
        x[size + at] += older[i] * twist[size + at];
        x[i] -= newer[i] * twist[size + i];
        x[size + i] += newer[i] * twist[i];
    }
    for (int i = 1; i < size; i *= 2) {
        ddsp_fft_pass(x, y, twiddles, size);
        twiddles += size;
        done = y, y = x, x = done;
    }
    if (x != spectrum)
        memcpy(spectrum, x, 2 * (size_t)size * sizeof *x);
}

/* Adds the second half of a window to n samples of audio. Overwrites `spectrum` and `work`. */
static inline void ddsp_add_inverse(float *DDSP_RESTRICT audio, float *spectrum, float *work, int n,
                                    const float *twist, const float *twiddles, int size)
{
    float *x = spectrum, *y = work, *done;
    for (int i = 1; i < size; i *= 2)
        twiddles += size;
    for (int i = 1; i < size; i *= 2) {
        twiddles -= size;
        ddsp_ifft_pass(x, y, twiddles, size);
        done = y, y = x, x = done;
    }
    for (int i = 0; i < n; i++)
        audio[i] += x[size + i] * twist[i] - x[i] * twist[size + i];
}

/* y += x * h, complex. */
DDSP_APART static void ddsp_multiply_add(float *DDSP_RESTRICT y, const float *DDSP_RESTRICT x,
                                         const float *DDSP_RESTRICT h, int size)
{
    for (int i = 0; i < size; i++) {
        y[i] += x[i] * h[i] - x[size + i] * h[size + i];
        y[size + i] += x[i] * h[size + i] + x[size + i] * h[i];
    }
}

#if DDSP_TAIL_PARTITIONS > 0
/* Does a frame's share of the tail's work. What goes in during one block of frames is multiplied
   during the next and heard in the one after, so that no frame has much more to do than another. */
static inline void ddsp_reverb_tail(ddsp_state *s, const float *dry, float *audio)
{
    const int frame = (int)(s->tail_frame % DDSP_TAIL_FRAMES);
    const int64_t block = s->tail_frame / DDSP_TAIL_FRAMES;
    const int n = DDSP_TAIL_FRAMES * DDSP_HOP;
    if (frame == 0) {
        ddsp_transform(s->tail_spectra[block % DDSP_TAIL_PARTITIONS], s->work,
                       s->tail_dry[block % 2], s->tail_dry[(block + 1) % 2], n, ddsp_tail_twist,
                       ddsp_tail_twiddles, DDSP_TAIL_SIZE);
        memset(s->tail_sum, 0, sizeof s->tail_sum);
    }
    memcpy(s->tail_dry[block % 2] + frame * DDSP_HOP, dry, DDSP_HOP * sizeof *dry);
    for (int i = frame * DDSP_TAIL_PARTITIONS / DDSP_TAIL_FRAMES;
         i < (frame + 1) * DDSP_TAIL_PARTITIONS / DDSP_TAIL_FRAMES; i++) {
        const int64_t age = block + DDSP_TAIL_PARTITIONS - i;
        ddsp_multiply_add(s->tail_sum, s->tail_spectra[age % DDSP_TAIL_PARTITIONS],
                          ddsp_tail + i * 2 * DDSP_TAIL_SIZE, DDSP_TAIL_SIZE);
    }
    ddsp_add(audio, s->tail_audio + frame * DDSP_HOP, DDSP_HOP);
    if (frame == DDSP_TAIL_FRAMES - 1) {
        memset(s->tail_audio, 0, sizeof s->tail_audio);
        ddsp_add_inverse(s->tail_audio, s->tail_sum, s->work, n, ddsp_tail_twist,
                         ddsp_tail_twiddles, DDSP_TAIL_SIZE);
    }
    s->tail_frame++;
}
#endif

/* A frame of audio: the dry signal, and the room. */
static inline void ddsp_reverb(ddsp_state *s, const float *dry, float *audio)
{
    float sum[2 * DDSP_HEAD_SIZE] = {0.0f};
    ddsp_transform(s->head_spectra[s->head_newest], s->work, s->head_dry, dry, DDSP_HOP,
                   ddsp_head_twist, ddsp_head_twiddles, DDSP_HEAD_SIZE);
    for (int i = 0; i < DDSP_HEAD_PARTITIONS; i++) {
        const int age = s->head_newest + DDSP_HEAD_PARTITIONS - i;
        ddsp_multiply_add(sum, s->head_spectra[age % DDSP_HEAD_PARTITIONS],
                          ddsp_head + i * 2 * DDSP_HEAD_SIZE, DDSP_HEAD_SIZE);
    }
    s->head_newest = (s->head_newest + 1) % DDSP_HEAD_PARTITIONS;
    memcpy(s->head_dry, dry, sizeof s->head_dry);
    memcpy(audio, dry, DDSP_HOP * sizeof *audio);
    ddsp_add_inverse(audio, sum, s->work, DDSP_HOP, ddsp_head_twist, ddsp_head_twiddles,
                     DDSP_HEAD_SIZE);
#if DDSP_TAIL_PARTITIONS > 0
    ddsp_reverb_tail(s, dry, audio);
#endif
}
