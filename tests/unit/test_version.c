/* SPDX-License-Identifier: Apache-2.0 */
/* One version: meson.build's, the header's and the library's. */
#include <dilocox.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

#if DLX_VERSION_NUMBER < 200
#error "the version must be usable in a condition of the preprocessor"
#endif

static void build_header_and_library_have_one_version(void **state) {
    (void)state;
    char numbers[64];
    snprintf(numbers, sizeof numbers, "%d.%d.%d", DLX_VERSION_MAJOR, DLX_VERSION_MINOR,
             DLX_VERSION_PATCH);
    assert_string_equal(numbers, PROJECT_VERSION);
    assert_string_equal(DLX_VERSION_TEXT, PROJECT_VERSION);
    assert_string_equal(dlx_version(), PROJECT_VERSION);
    assert_int_equal(dlx_version_number(), DLX_VERSION_NUMBER);
    assert_true(DLX_VERSION_MINOR < 100 && DLX_VERSION_PATCH < 100); /* two digits each */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(build_header_and_library_have_one_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
