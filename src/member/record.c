/* SPDX-License-Identifier: Apache-2.0 */
/* Records of committed rounds. */
#include <stdlib.h>

#include "member/coordinator_internal.h"

dlxi_record *dlxi_record_new(uint16_t members, uint16_t ranks) {
    size_t measures = (size_t)members * ranks;
    dlxi_record *r =
        calloc(1, sizeof *r + members * sizeof *r->member + 2 * measures * sizeof *r->exchange_ns);
    if (r == NULL) return NULL;
    r->members = members;
    r->ranks = ranks;
    r->exchange_ns = (uint64_t *)(r + 1);
    r->exchange_bytes = r->exchange_ns + measures;
    r->member = (dlxi_record_member *)(r->exchange_bytes + measures);
    return r;
}

const dlxi_record *dlxi_record_of(const dlxi_coordinator *c, uint64_t round) {
    const dlxi_record *r = c->records[round % DLXI_COORDINATOR_RECORDS];
    return r != NULL && r->round == round ? r : NULL;
}

void dlxi_record_keep(dlxi_coordinator *c, dlxi_record *record) {
    dlxi_record **place = &c->records[record->round % DLXI_COORDINATOR_RECORDS];
    free(*place);
    *place = record;
}

void dlxi_record_view(dlxi_view *view, const dlxi_record *record, uint16_t rank) {
    view->members = record->members;
    for (uint16_t m = 0; m < record->members; m++) {
        size_t at = (size_t)rank * record->members + m;
        const dlxi_record_member *from = &record->member[m];
        view->member[m].site = from->site;
        view->member[m].voided = from->voided;
        view->member[m].tokens = from->tokens;
        view->member[m].step_ns = from->step_ns;
        view->member[m].exchange_ns = record->exchange_ns[at];
        view->member[m].exchange_bytes = record->exchange_bytes[at];
    }
}
