/* SPDX-License-Identifier: Apache-2.0 */
/* The codec again, for the baseline CPU alone and under other names, to compare bits with. */
#define DLXI_NO_CLONES

#define dlxi_arithmetic_enter      plain_arithmetic_enter
#define dlxi_arithmetic_leave      plain_arithmetic_leave
#define dlxi_quantiser_group_bytes plain_quantiser_group_bytes
#define dlxi_quantise              plain_quantise
#define dlxi_dequantise            plain_dequantise
#define dlxi_dequantise_add        plain_dequantise_add
#define dlxi_codes_valid           plain_codes_valid
#define dlxi_orthonormalise        plain_orthonormalise
#define dlxi_expand_rows           plain_expand_rows
#define dlxi_spectrum              plain_spectrum
#define dlxi_basis_fill            plain_basis_fill
#define dlxi_basis_from            plain_basis_from

#include "codec/arithmetic.c"
#include "codec/quantise.c"
#include "codec/low_rank.c"
#include "codec/orthonormal.c"
