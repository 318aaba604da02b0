/* Times a model in C: reads controls, [N_CONTROLS][2], writes seconds, [rounds][BLOCKS + STAGES]. */

#define _POSIX_C_SOURCE 199309L
#include "ddsp.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { N_CONTROLS = 4096, BLOCKS = 6, STAGES = 4, LONGEST = 32, FRAMES = 16 };

static float f0_hz[N_CONTROLS], loudness_db[N_CONTROLS];
static ddsp_state streams[BLOCKS], stages;
static float audio[LONGEST * DDSP_HOP], dry[2 * DDSP_HOP + DDSP_FILTERED];
static float outputs[FRAMES * DDSP_OUTPUTS];

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* One block of one stage, apart from the others; they go round the controls as streams do. */
static double stage(int which, int at)
{
    const double start = now();
    if (which == 0)
        ddsp_decode(&stages, f0_hz + at, loudness_db + at, FRAMES, outputs);
    for (int i = 0; i < FRAMES; i++) {
        if (which == 1)
            ddsp_harmonics(&stages, outputs + i * DDSP_OUTPUTS, f0_hz[at + i], audio + i * DDSP_HOP);
        if (which == 2)
            ddsp_noise(&stages, outputs + i * DDSP_OUTPUTS, (uint32_t)(at + i) * DDSP_HOP, dry);
        if (which == 3)
            ddsp_reverb(&stages, dry, audio + i * DDSP_HOP);
    }
    return now() - start;
}

int main(int n_arguments, char **arguments)
{
    const int rounds = n_arguments > 1 ? atoi(arguments[1]) : 1;
    static float controls[N_CONTROLS][2];
    if (fread(controls, sizeof *controls, N_CONTROLS, stdin) != N_CONTROLS)
        return 1;
    for (int t = 0; t < N_CONTROLS; t++) {
        f0_hz[t] = controls[t][0];
        loudness_db[t] = controls[t][1];
    }
    for (int i = 0; i < BLOCKS; i++)
        ddsp_init(&streams[i], 0);
    ddsp_init(&stages, 0);
    for (int round = 0; round < rounds; round++) {
        double seconds[BLOCKS + STAGES];
        for (int i = 0; i < BLOCKS; i++) {
            const int n = 1 << i, at = round * n % N_CONTROLS;
            const double start = now();
            ddsp_process(&streams[i], f0_hz + at, loudness_db + at, n, audio);
            seconds[i] = now() - start;
        }
        memset(dry, 0, sizeof dry);
        for (int i = 0; i < STAGES; i++)
            seconds[BLOCKS + i] = stage(i, round * FRAMES % N_CONTROLS);
        fwrite(seconds, sizeof seconds, 1, stdout);
    }
    return 0;
}
