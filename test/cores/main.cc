#include "check.h"

int main(int argc, char ** argv) {
    return droid::test::main(argc, argv);
}
