/* ---- Decoder: what the layers are made of ---- */

/* y += x @ w, with w as [n_in][n_out]. */
static inline void ddsp_dense(float *DDSP_RESTRICT y, const float *DDSP_RESTRICT x,
                              const float *DDSP_RESTRICT w, int n_in, int n_out)
{
    for (int i = 0; i < n_in; i++) {
        DDSP_LANES
        for (int o = 0; o < n_out; o++)
            y[o] += x[i] * w[i * n_out + o];
    }
}

/* y += x * w, channel by channel. */
static inline void ddsp_depthwise(float *DDSP_RESTRICT y, const float *DDSP_RESTRICT x,
                                  const float *DDSP_RESTRICT w, int n)
{
    DDSP_LANES
    for (int i = 0; i < n; i++)
        y[i] += x[i] * w[i];
}

static inline void ddsp_add(float *DDSP_RESTRICT y, const float *DDSP_RESTRICT x, int n)
{
    DDSP_LANES
    for (int i = 0; i < n; i++)
        y[i] += x[i];
}

static inline void ddsp_centre(float *y, int n)
{
    const float mean = ddsp_sum(y, n) / (float)n;
    DDSP_LANES
    for (int i = 0; i < n; i++)
        y[i] -= mean;
}

/* Divides by the standard deviation over channels, whose mean is zero. */
static inline void ddsp_normalize(float *y, int n, float epsilon)
{
    const float gain = 1.0f / sqrtf(ddsp_sum_of_squares(y, n) / (float)n + epsilon);
    DDSP_LANES
    for (int i = 0; i < n; i++)
        y[i] *= gain;
}

static inline void ddsp_rescale(float *DDSP_RESTRICT y, const float *DDSP_RESTRICT scale,
                                const float *DDSP_RESTRICT shift, int n)
{
    DDSP_LANES
    for (int i = 0; i < n; i++)
        y[i] = y[i] * scale[i] + shift[i];
}

static inline void ddsp_relu6(float *y, int n)
{
    DDSP_LANES
    for (int i = 0; i < n; i++)
        y[i] = y[i] > 0.0f ? y[i] : 0.0f;
    DDSP_LANES
    for (int i = 0; i < n; i++)
        y[i] = y[i] < 6.0f ? y[i] : 6.0f;
}

static inline void ddsp_leaky_relu(float *y, int n)
{
    DDSP_LANES
    for (int i = 0; i < n; i++)
        y[i] = y[i] < 0.0f ? DDSP_LEAK * y[i] : y[i];
}

/* The new state of a gated recurrent unit: `from_input` and `from_state` are products with the
   two kernels, biases included, in the order of the gates z, r and the candidate. */
static inline void ddsp_gru(float *DDSP_RESTRICT state, const float *DDSP_RESTRICT before,
                            const float *DDSP_RESTRICT from_input,
                            const float *DDSP_RESTRICT from_state, int n)
{
    for (int i = 0; i < n; i++) {
        const float z = ddsp_sigmoid(from_input[i] + from_state[i]);
        const float r = ddsp_sigmoid(from_input[n + i] + from_state[n + i]);
        const float c = from_input[2 * n + i] + r * from_state[2 * n + i];
        const float tanh_c = 2.0f * ddsp_sigmoid(2.0f * c) - 1.0f;
        state[i] = z * before[i] + (1.0f - z) * tanh_c;
    }
}
