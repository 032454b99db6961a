/* SPDX-License-Identifier: Apache-2.0 */
/* The lease ledger: which site may use which windows for which submission. Positions come from one
 * global order without end; what a lease leaves unused goes back and is leased again first. Pure.
 */
#ifndef DLXI_MEMBER_LEASE_H
#define DLXI_MEMBER_LEASE_H

#include "wire/bytes.h"
#include "wire/messages.h"

typedef struct dlxi_ledger dlxi_ledger;

dlx_status dlxi_ledger_open(dlxi_ledger **out, dlx_error *error);
void dlxi_ledger_close(dlxi_ledger **ledger);

/* The lowest free positions, `windows` of them (fewer if the lease's ranges run out), for one
 * submission of one site. */
void dlxi_ledger_grant(dlxi_ledger *ledger, dlxi_lease *lease, uint64_t submission,
                       uint32_t windows);

/* So many more, behind those that it has. */
void dlxi_ledger_extend(dlxi_ledger *ledger, dlxi_lease *lease, uint32_t windows);

/* The site used the first `used` windows of a lease; the rest is free again. */
void dlxi_ledger_settle(dlxi_ledger *ledger, const dlxi_lease *lease, uint32_t used);

/* To bytes and back: at most dlxi_ledger_bytes. read: false if they are malformed. */
size_t dlxi_ledger_bytes(const dlxi_ledger *ledger);
void dlxi_ledger_write(const dlxi_ledger *ledger, dlxi_writer *writer);
bool dlxi_ledger_read(dlxi_ledger *ledger, dlxi_reader *reader);

uint64_t dlxi_lease_windows(const dlxi_lease *lease);
/* The position of the lease's i-th window, i < dlxi_lease_windows. */
uint64_t dlxi_lease_position(const dlxi_lease *lease, uint64_t i);

#endif
