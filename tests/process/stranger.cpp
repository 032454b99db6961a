// SPDX-License-Identifier: Apache-2.0
// A user's first program in C++, with the trainer, built from an installed tree alone.
#include <dilocox_train.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static_assert(DLX_VERSION_NUMBER >= 200, "needs dilocox 0.2");

static int fail(const dlx_error &error) {
    return std::fprintf(stderr, "%s\n", error.message), 1;
}

int main() {
    if (dlx_version() != std::string(DLX_VERSION_TEXT)) return 1;
    dlx_error error;
    dlx_hub *hub = nullptr;
    dlx_config *config = nullptr;
    char *text = nullptr;
    if (dlx_hub_open(&hub, &error) != DLX_OK || dlx_config_open(&config, &error) != DLX_OK ||
        dlx_config_print(&text, config, &error) != DLX_OK)
        return fail(error);
    const bool complete = std::string(text).find("inner_steps:") != std::string::npos;
    std::free(text);
    dlx_config_close(&config);

    std::vector<float> values(1000), decoded(values.size());
    for (std::size_t i = 0; i < values.size(); i++) values[i] = std::cos(float(i));
    std::vector<unsigned char> packed(dlx_codec_bound(values.size(), 8, 64));
    if (dlx_codec_encode(packed.data(), values.data(), values.size(), 8, 64, &error) != DLX_OK ||
        dlx_codec_decode(decoded.data(), packed.data(), packed.size(), values.size(), 8, 64,
                         &error) != DLX_OK)
        return fail(error);
    float worst = 0; // half a step of 1/127, and what the scale's rounding adds
    for (std::size_t i = 0; i < values.size(); i++)
        worst = std::fmax(worst, std::fabs(decoded[i] - values[i]));
    std::printf("dilocox %s: config %s, worst %.4f\n", dlx_version(), complete ? "read" : "empty",
                double(worst));
    dlx_hub_close(&hub);
    return complete && worst < 0.006f ? 0 : 1;
}
