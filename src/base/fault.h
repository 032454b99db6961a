/* SPDX-License-Identifier: Apache-2.0 */
/* Faults planted on purpose, so that the simulator can show that it finds them: DLXI_PLANTED(n) is
 * false in every build but that of tests/sim with -DDLXI_FAULTS, where `--fault n` makes it true.
 * With `--fault 100+n` the coordinator doesn't compare the anchors' hashes either, so that what the
 * simulator itself compares has to find the fault. */
#ifndef DLXI_BASE_FAULT_H
#define DLXI_BASE_FAULT_H

#ifdef DLXI_FAULTS
extern int dlxi_planted_fault;
#define DLXI_PLANTED(n) (dlxi_planted_fault % 100 == (n))
#define DLXI_HASHES_OFF (dlxi_planted_fault >= 100)
#else
#define DLXI_PLANTED(n) 0
#define DLXI_HASHES_OFF 0
#endif

#endif
