/* By the macro a program sees that it got this header, and not the installed one of the same name. */
#define HIREDIS_STUB
#include INSTALLED_HIREDIS_HEADER
