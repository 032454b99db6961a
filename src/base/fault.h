/* SPDX-License-Identifier: Apache-2.0 */
/* Faults planted on purpose, so that the simulator can show that it finds them: DLXI_PLANTED(n) is
 * false in every build but that of tests/sim with -DDLXI_FAULTS, where `--fault n` makes it true.
 */
#ifndef DLXI_BASE_FAULT_H
#define DLXI_BASE_FAULT_H

#ifdef DLXI_FAULTS
extern int dlxi_planted_fault;
#define DLXI_PLANTED(n) (dlxi_planted_fault == (n))
#else
#define DLXI_PLANTED(n) 0
#endif

#endif
