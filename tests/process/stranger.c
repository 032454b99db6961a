/* SPDX-License-Identifier: Apache-2.0 */
/* A user's first program in C, built from an installed tree alone; it sets its structs as another
 * language would. */
#include <dilocox.h>

#include <math.h>
#include <stdio.h>

#if DLX_VERSION_NUMBER < 200
#error "needs dilocox 0.2"
#endif

int main(void) {
    printf("dilocox %s, header %s\n", dlx_version(), DLX_VERSION_TEXT);
    if (dlx_version_number() < DLX_VERSION_NUMBER) return puts("the library is too old"), 1;

    dlx_error error;
    dlx_hub *hub = NULL;
    dlx_coordinator *coordinator = NULL;
    dlx_coordinator_config run;
    dlx_coordinator_config_default(&run, sizeof run);
    run.tokens = 1000;
    if (dlx_hub_open(&hub, &error) != DLX_OK) return fprintf(stderr, "%s\n", error.message), 1;
    run.link.hub = hub;
    if (dlx_coordinator_open(&coordinator, &run, &error) != DLX_OK)
        return fprintf(stderr, "%s\n", error.message), 1;
    dlx_coordinator_close(&coordinator);
    dlx_hub_close(&hub);

    dlx_sync_config config;
    dlx_sync_config_default(&config, sizeof config);
    config.tensor_bytes = sizeof(dlx_tensor);
    printf("H %u, %d bits\n", (unsigned)config.inner_steps, config.bits);

    float values[100], decoded[100];
    unsigned char packed[128];
    for (int i = 0; i < 100; i++) values[i] = sinf((float)i);
    size_t bytes = dlx_codec_bound(100, config.bits, config.group);
    if (bytes == 0 || bytes > sizeof packed) return 1;
    if (dlx_codec_encode(packed, values, 100, config.bits, config.group, &error) != DLX_OK ||
        dlx_codec_decode(decoded, packed, bytes, 100, config.bits, config.group, &error) != DLX_OK)
        return fprintf(stderr, "%s\n", error.message), 1;
    for (int i = 0; i < 100; i++) /* half a step of 1/7 */
        if (fabsf(decoded[i] - values[i]) > 0.08f) return puts("decoded something else"), 1;
    return 0;
}
