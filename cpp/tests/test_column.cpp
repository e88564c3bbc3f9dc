// Column and Half: exact in 16 bits, or 32 bits from the first number that does not fit.
#include "check.hpp"
#include "sparing/column.hpp"

#include <cmath>
#include <limits>

using namespace sparing;

int main() {
    // Every half that is a number goes there and back; its neighbours in float do not.
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const float x = Half{static_cast<uint16_t>(bits)}.value();
        Half back;
        if ((bits & 0x7C00U) == 0x7C00U) continue;
        CHECK(narrow(x, back) && back.bits == bits);
        CHECK(!narrow(std::nextafter(x, 1e30F), back) && !narrow(std::nextafter(x, -1e30F), back));
    }
    CHECK(Half{0x3C00}.value() == 1 && Half{0xC000}.value() == -2 && Half{0x7BFF}.value() == 65504);
    CHECK(Half{0x0001}.value() == 0x1p-24F && std::signbit(Half{0x8000}.value()));
    for (const float x : {65536.F, 65520.F, 1e30F, 0.1F, 0x1p-25F, std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
        Half out;
        CHECK_FOR(std::to_string(x), !narrow(x, out));
    }

    Column<float> column;
    const float fits[] = {0.5F, -2, 0}, not_all[] = {1, 0.1F};
    column.prepare(fits, 3);
    column.append(fits, 3);
    CHECK(column.is_narrow() && column.size() == 3 && column.bytes() == 6);
    Column<float> same = column.empty_like();
    same.append(column, 1, 2);
    CHECK(same.is_narrow() && same.size() == 2);
    column.prepare(not_all, 2);
    CHECK(!column.is_narrow() && column.size() == 3);
    column.append(not_all, 2);
    float out[5];
    column.read(0, 5, out);
    CHECK(out[0] == 0.5F && out[1] == -2 && out[2] == 0 && out[3] == 1 && out[4] == 0.1F);
    Column<float> wide = column.empty_like();
    wide.append(column, 3, 2);
    wide.resize(1);
    CHECK(!wide.is_narrow() && wide.size() == 1 && *wide.wide_data() == 1);

    Column<uint32_t> terms;
    const uint32_t small[] = {0, 65'535}, large[] = {65'536};
    terms.prepare(small, 2);
    terms.append(small, 2);
    CHECK(terms.is_narrow() && terms.narrow_data()[1] == 65'535);
    terms.prepare(large, 1);
    terms.append(large, 1);
    CHECK(!terms.is_narrow() && terms.wide_data()[1] == 65'535 && terms.wide_data()[2] == 65'536);
    return check::report();
}
