#include "lib/net/form.hpp"

#include <gtest/gtest.h>

using namespace ocrctl;
using namespace ocrctl::net;

namespace {

Request form(std::string type, std::string body) {
    Request request;
    request.method = "POST";
    request.headers.add("Content-Type", std::move(type));
    request.body = std::move(body);
    return request;
}

} // namespace

TEST(Form, ReadsMultipartPartsWithAndWithoutFilename) {
    auto parts = parse_form(form("multipart/form-data; boundary=XX",
                                 "--XX\r\nContent-Disposition: form-data; name=\"workflow\"; filename=\"w \\\"1\\\".txt\"\r\n"
                                 "Content-Type: text/plain\r\n\r\nline 1\r\nline 2\r\n--XX\r\n"
                                 "content-disposition: form-data; name=plain\r\n\r\n\r\n--XX--\r\n"));
    ASSERT_TRUE(parts) << parts.error().message();
    ASSERT_EQ(parts->size(), 2u);
    EXPECT_EQ((*parts)[0].name, "workflow");
    EXPECT_EQ((*parts)[0].filename, "w \"1\".txt");
    EXPECT_EQ((*parts)[0].content_type, "text/plain");
    EXPECT_EQ((*parts)[0].body, "line 1\r\nline 2");
    EXPECT_FALSE((*parts)[1].filename);
    EXPECT_EQ((*parts)[1].body, "");
    EXPECT_EQ(find_part(*parts, "plain"), &(*parts)[1]);
    EXPECT_EQ(find_part(*parts, "none"), nullptr);
}

TEST(Form, TellsNameFromFilename) {
    auto parts = parse_form(form("multipart/form-data; boundary=\"a b\"",
                                 "preamble\r\n--a b\r\nContent-Disposition: form-data; filename=\"name=x;y\"; name=\"n\"\r\n\r\nz\r\n--a b--"));
    ASSERT_TRUE(parts) << parts.error().message();
    ASSERT_EQ(parts->size(), 1u);
    EXPECT_EQ((*parts)[0].name, "n");
    EXPECT_EQ((*parts)[0].filename, "name=x;y");
}

TEST(Form, ReadsUrlencodedBodies) {
    auto parts = parse_form(form("application/x-www-form-urlencoded; charset=utf-8", "workflow=a+b%0Ac&x="));
    ASSERT_TRUE(parts);
    EXPECT_EQ(find_part(*parts, "workflow")->body, "a b\nc");
}

TEST(Form, RefusesOtherTypesAndBrokenBodies) {
    EXPECT_FALSE(parse_form(form("application/json", "{}")));
    EXPECT_FALSE(parse_form(form("multipart/form-data", "x")));
    std::string const whole = "--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nbody\r\n--XX--";
    ASSERT_TRUE(parse_form(form("multipart/form-data; boundary=XX", whole)));
    for (std::size_t cut = 0; cut < whole.size() - 1; ++cut)
        EXPECT_FALSE(parse_form(form("multipart/form-data; boundary=XX", whole.substr(0, cut)))) << cut;
}
