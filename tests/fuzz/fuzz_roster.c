/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a roster. What is taken must hold allowed names and keys, each once; what is refused
 * must say a line. */
#include "replay.h"
#include "base/panic.h"
#include "link/roster.h"

#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static dlxi_roster roster;
    dlx_error error = {0};
    if (dlxi_roster_parse(&roster, (const char *)data, bytes, "roster.txt", &error) != DLX_OK) {
        DLXI_ASSERT(error.status == DLX_CONFIG &&
                    strncmp(error.message, "wan.roster: roster.txt:", 23) == 0);
        for (const char *c = error.message; *c != '\0'; c++) DLXI_ASSERT(*c >= ' ' && *c <= '~');
        return 0;
    }
    DLXI_ASSERT(roster.count <= DLXI_ROSTER_NAMES_MAX);
    for (size_t i = 0; i < roster.count; i++) {
        const dlxi_roster_line *line = &roster.lines[i];
        uint8_t key[DLXI_KEY_BYTES];
        DLXI_ASSERT(dlxi_name_valid(line->name) &&
                    dlxi_roster_by_name(&roster, line->name) == line);
        DLXI_ASSERT(dlxi_key_decode(key, line->key_text) &&
                    memcmp(key, line->key, sizeof key) == 0);
        DLXI_ASSERT(dlxi_roster_by_key(&roster, key) == line);
    }
    return 0;
}

size_t fuzz_seed(uint8_t *data, int index) {
    static const char *const rosters[] = {
        "# who may join\ncoordinator rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7\n"
        "delft D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs # the second\n",
        "a 0000000000000000000000000000000000000000\nb "
        "0000000000000000000000000000000000000001\r\n\n",
        "a 0000000000000000000000000000000000000000\na 0000000000000000000000000000000000000001\n",
        "..\t0000000000000000000000000000000000000000\n",
    };
    if ((size_t)index >= sizeof rosters / sizeof *rosters) return 0;
    return (size_t)snprintf((char *)data, FUZZ_INPUT_BYTES_MAX, "%s", rosters[index]);
}
