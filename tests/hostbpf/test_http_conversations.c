/* Conversations on one connection, each delivered in every way that check_conversation() knows. */
#include "http.h"
#include "testing.h"

#define GET "GET / HTTP/1.1\r\n\r\n"
#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#define ONE_GET {METHOD_GET, 200, "/", END_RESPONSE}
/* The request was understood, its response was not. */
#define ONE_UNFRAMED(status) {METHOD_GET, status, "/", END_UNFRAMED}

/* ---- heads */

TEST(one_request)
{
	static const struct step steps[] = {
		IN("GET /api/users?id=7 HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: wrk\r\n\r\n"),
		OUT("HTTP/1.1 201 Created\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"),
	};
	static const struct want wanted[] = {{METHOD_GET, 201, "/api/users?id=7", END_RESPONSE}};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(bare_line_feeds)
{
	static const struct step steps[] = {
		IN("GET / HTTP/1.1\nHost: a\n\n"),
		OUT("HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
	};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(empty_lines_before_a_request)
{
	static const struct step steps[] = {IN("\r\n\r\n" GET), OUT(OK), IN("\r\n" GET), OUT(OK)};
	static const struct want wanted[] = {ONE_GET, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(every_method)
{
	static const struct step steps[] = {
		IN("GET / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("POST / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("PUT / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("PATCH / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("DELETE / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("OPTIONS * HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("TRACE / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("PROPFIND / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("M-SEARCH_ / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("GETX / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("A / HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("ABCDEFGHIJKLMNO / HTTP/1.1\r\n\r\n"),
		OUT(OK),
	};
	static const struct want wanted[] = {
		{METHOD_GET, 200, "/", END_RESPONSE},	 {METHOD_POST, 200, "/", END_RESPONSE},
		{METHOD_PUT, 200, "/", END_RESPONSE},	 {METHOD_PATCH, 200, "/", END_RESPONSE},
		{METHOD_DELETE, 200, "/", END_RESPONSE}, {METHOD_OPTIONS, 200, "*", END_RESPONSE},
		{METHOD_TRACE, 200, "/", END_RESPONSE},	 {METHOD_OTHER, 200, "/", END_RESPONSE},
		{METHOD_OTHER, 200, "/", END_RESPONSE},	 {METHOD_OTHER, 200, "/", END_RESPONSE},
		{METHOD_OTHER, 200, "/", END_RESPONSE},	 {METHOD_OTHER, 200, "/", END_RESPONSE},
	};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(http_1_0)
{
	static const struct step steps[] = {IN("GET / HTTP/1.0\r\n\r\n"), OUT("HTTP/1.0 200 OK\r\n\r\nhello\n\n")};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(status_line_without_a_reason)
{
	static const struct step steps[] = {IN(GET), OUT("HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok")};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

/* ---- one after the other */

TEST(keep_alive)
{
	static const struct step steps[] = {
		IN("GET /a HTTP/1.1\r\n\r\n"),
		OUT(OK),
		IN("POST /b HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"),
		OUT("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
		IN("GET /c HTTP/1.1\r\n\r\n"),
		OUT("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n"),
	};
	static const struct want wanted[] = {
		{METHOD_GET, 200, "/a", END_RESPONSE},
		{METHOD_POST, 500, "/b", END_RESPONSE},
		{METHOD_GET, 404, "/c", END_RESPONSE},
	};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(pipelined)
{
	static const struct step steps[] = {
		IN("GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 4\r\n\r\nbodyGET /c "
		   "HTTP/1.1\r\n\r\nGE"),
		OUT("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 201 OK\r\nContent-Le"),
		IN("T /d HTTP/1.1\r\n\r\n"),
		OUT("ngth: 0\r\n\r\nHTTP/1.1 202 OK\r\nContent-Length: 1\r\n\r\n."),
		OUT("HTTP/1.1 204 No\r\n\r\n"),
	};
	static const struct want wanted[] = {
		{METHOD_GET, 200, "/a", END_RESPONSE},
		{METHOD_POST, 201, "/b", END_RESPONSE},
		{METHOD_GET, 202, "/c", END_RESPONSE},
		{METHOD_GET, 204, "/d", END_RESPONSE},
	};

	CHECK_CONVERSATION(steps, wanted, 0);
}

/* ---- bodies */

TEST(request_body_counted)
{
	static const struct step steps[] = {
		IN("POST /u HTTP/1.1\r\nContent-Length: 26\r\n\r\nGET / HTTP/1.1\r\n\r\n\n\n\n\n\n\n\n\n" GET),
		OUT(OK OK),
	};
	static const struct want wanted[] = {{METHOD_POST, 200, "/u", END_RESPONSE}, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(request_body_chunked)
{
	static const struct step steps[] = {
		IN("PUT /u HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n10\r\n0\r\n\r\nGET / "
		   "HTTP/\r\n"
		   "0\r\n\r\n" GET),
		OUT(OK OK),
	};
	static const struct want wanted[] = {{METHOD_PUT, 200, "/u", END_RESPONSE}, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(response_body_chunked)
{
	static const struct step steps[] = {
		IN(GET),
		OUT("HTTP/1.1 200 OK\r\ntransfer-encoding: "
		    "chunked\r\n\r\n2\r\nok\r\nA\r\n0123456789\r\n0\r\n\r\n"),
		IN(GET),
		OUT(OK),
	};
	static const struct want wanted[] = {ONE_GET, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(chunk_extensions)
{
	static const struct step steps[] = {
		IN("PUT /u HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;name=value\r\nhello\r\n"
		   "5 ; a=\"quoted; text\"\r\nhello\r\n0005\r\nhello\r\n0;last\r\n\r\n" GET),
		OUT("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\n.\r\n0;b=c\r\n\r\n" OK),
	};
	static const struct want wanted[] = {{METHOD_PUT, 200, "/u", END_RESPONSE}, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(chunk_extension_longer_than_a_kept_line)
{
	static const struct step steps[] = {
		IN("PUT /u HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;"
		   "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
		   "456789"
		   "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
		   "456789"
		   "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
		   "456789"
		   "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
		   "456789"
		   "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
		   "456789"
		   "\r\nhello\r\n0\r\n\r\n" GET),
		OUT(OK OK),
	};
	static const struct want wanted[] = {{METHOD_PUT, 200, "/u", END_RESPONSE}, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(trailers)
{
	static const struct step steps[] = {
		IN("PUT /u HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n0\r\nContent-Length: 9\r\n"
		   "X-Sum: 1\r\n\r\n" GET),
		OUT("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n0\r\nGrpc-Status: "
		    "0\r\n\r\n" OK),
	};
	static const struct want wanted[] = {{METHOD_PUT, 200, "/u", END_RESPONSE}, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(transfer_encodings_that_end_in_chunked)
{
	static const struct step steps[] = {
		IN("PUT /u HTTP/1.1\r\nTransfer-Encoding:chunked\r\n\r\n0\r\n\r\n"
		   "PUT /u HTTP/1.1\r\nTRANSFER-ENCODING: gzip, CHUNKED\t \r\n\r\n0\r\n\r\n"
		   "PUT /u HTTP/1.1\r\ntransfer-encoding: gzip,chunked\r\n\r\n0\r\n\r\n"),
		OUT(OK OK OK),
	};
	static const struct want wanted[] = {
		{METHOD_PUT, 200, "/u", END_RESPONSE},
		{METHOD_PUT, 200, "/u", END_RESPONSE},
		{METHOD_PUT, 200, "/u", END_RESPONSE},
	};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(equal_content_lengths)
{
	static const struct step steps[] = {
		IN("POST /u HTTP/1.1\r\nContent-Length: 2\r\nContent-Length:\t 2 \r\n\r\nok" GET),
		OUT("HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 02\r\n\r\nok" OK),
	};
	static const struct want wanted[] = {{METHOD_POST, 200, "/u", END_RESPONSE}, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(response_until_close)
{
	static const struct step steps[] = {
		IN(GET),
		OUT("HTTP/1.1 200 OK\r\nContent-Type: a\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
	};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(responses_without_a_body)
{
	static const struct step steps[] = {
		IN("HEAD /h HTTP/1.1\r\n\r\n"),
		OUT("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
		IN("HEAD /h HTTP/1.1\r\n\r\n"),
		OUT("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
		IN("HEAD /h HTTP/1.1\r\n\r\n"),
		OUT("HTTP/1.1 200 OK\r\n\r\n"),
		IN(GET),
		OUT("HTTP/1.1 204 No Content\r\n\r\n"),
		IN(GET),
		OUT("HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"),
		IN(GET),
		OUT(OK),
	};
	static const struct want wanted[] = {
		{METHOD_HEAD, 200, "/h", END_RESPONSE}, {METHOD_HEAD, 200, "/h", END_RESPONSE},
		{METHOD_HEAD, 200, "/h", END_RESPONSE}, {METHOD_GET, 204, "/", END_RESPONSE},
		{METHOD_GET, 304, "/", END_RESPONSE},	ONE_GET,
	};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(interim_responses)
{
	static const struct step steps[] = {
		IN("POST /u HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"),
		OUT("HTTP/1.1 100 Continue\r\n\r\n"),
		IN("body"),
		OUT("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" OK),
		IN(GET),
		OUT(OK),
	};
	static const struct want wanted[] = {{METHOD_POST, 200, "/u", END_RESPONSE}, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(response_before_the_request_body_has_ended)
{
	static const struct step steps[] = {
		IN("POST /u HTTP/1.1\r\nContent-Length: 10\r\n\r\n01234"),
		OUT("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"),
		IN("56789" GET),
		OUT(OK),
		IN("POST /u HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"),
		OUT("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"),
		IN("llo\r\n0\r\n\r\n" GET),
		OUT(OK),
	};
	static const struct want wanted[] = {
		{METHOD_POST, 413, "/u", END_RESPONSE},
		ONE_GET,
		{METHOD_POST, 401, "/u", END_RESPONSE},
		ONE_GET,
	};

	CHECK_CONVERSATION(steps, wanted, 0);
}

/* The response is complete while the next request's head is half read. */
TEST(response_between_the_pieces_of_the_next_head)
{
	static const struct step steps[] = {
		IN(GET "GET /next HTTP/1.1\r\nHo"),
		OUT(OK),
		IN("st: a\r\n\r\n"),
		OUT(OK),
	};
	static const struct want wanted[] = {ONE_GET, {METHOD_GET, 200, "/next", END_RESPONSE}};

	CHECK_CONVERSATION(steps, wanted, 0);
}

/* ---- other protocols from here on */

TEST(upgrade)
{
	static const struct step steps[] = {
		IN("GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
		OUT("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"),
		IN("\x81\x85\x01\x02\x03\x04\n\nGET / HTTP/1.1\r\n\r\n"),
		OUT("HTTP/1.1 200 OK\r\n\r\n"),
	};
	static const struct want wanted[] = {{METHOD_GET, 101, "/ws", END_UPGRADED}};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(upgrade_refused)
{
	static const struct step steps[] = {
		IN("GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
		OUT("HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n"),
		IN(GET),
		OUT(OK),
	};
	static const struct want wanted[] = {{METHOD_GET, 400, "/ws", END_RESPONSE}, ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(connect_method)
{
	static const struct step steps[] = {
		IN("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
		OUT("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"),
		IN("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
		OUT("HTTP/1.1 200 Connected\r\n\r\n"),
		IN("\x16\x03\x01\n\n"),
		OUT("\x16\x03\x01\n\n"),
	};
	static const struct want wanted[] = {
		{METHOD_CONNECT, 407, "a:443", END_RESPONSE},
		{METHOD_CONNECT, 200, "a:443", END_UPGRADED},
	};

	CHECK_CONVERSATION(steps, wanted, 0);
}

/* ---- closed in the middle */

TEST(closed_in_the_request_head)
{
	static const struct step steps[] = {IN(GET), OUT(OK), IN("GET / HTTP/1.1\r\nHost: a\r\n")};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(closed_in_the_request_body)
{
	static const struct step steps[] = {IN("POST /u HTTP/1.1\r\nContent-Length: 9\r\n\r\nbody")};
	static const struct want wanted[] = {{METHOD_POST, 0, "/u", END_CLOSED}};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(closed_before_the_response)
{
	static const struct step steps[] = {IN(GET)};
	static const struct want wanted[] = {{METHOD_GET, 0, "/", END_CLOSED}};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(closed_after_an_interim_response)
{
	static const struct step steps[] = {IN(GET), OUT("HTTP/1.1 100 Continue\r\n\r\n")};
	static const struct want wanted[] = {{METHOD_GET, 0, "/", END_CLOSED}};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(closed_in_the_response_head)
{
	static const struct step steps[] = {IN(GET), OUT("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n")};
	static const struct want wanted[] = {{METHOD_GET, 200, "/", END_CLOSED}};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(closed_in_the_response_body)
{
	static const struct step steps[] = {IN(GET), OUT("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")};
	static const struct want wanted[] = {{METHOD_GET, 200, "/", END_CLOSED}};

	CHECK_CONVERSATION(steps, wanted, 0);
}

TEST(closed_in_a_chunked_response)
{
	static const struct step steps[] = {
		IN(GET),
		OUT("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n"),
	};
	static const struct want wanted[] = {{METHOD_GET, 200, "/", END_CLOSED}};

	CHECK_CONVERSATION(steps, wanted, 0);
}

/* Those whose turn did not come were not handled: they have no span. */
TEST(closed_with_requests_in_the_queue)
{
	static const struct step steps[] = {
		IN("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\nGET /d HTTP/1.1\r\n"),
		OUT(OK),
	};
	static const struct want wanted[] = {
		{METHOD_GET, 200, "/a", END_RESPONSE},
		{METHOD_GET, 0, "/b", END_CLOSED},
	};

	CHECK_CONVERSATION(steps, wanted, 0);
}

/* ---- not to be followed */

TEST(content_length_and_transfer_encoding)
{
	static const struct step steps[] = {
		IN(GET),
		OUT(OK),
		IN("POST /u HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" GET),
		OUT(OK),
	};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CONVERSATION(steps, wanted, OPAQUE_FRAMING);
}

TEST(transfer_encoding_and_content_length)
{
	static const struct step steps[] = {
		IN("POST /u HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" GET),
		OUT(OK),
	};

	CHECK_NO_SPANS(steps, OPAQUE_FRAMING);
}

TEST(response_with_content_length_and_transfer_encoding)
{
	static const struct step steps[] = {
		IN(GET),
		OUT("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
		IN(GET),
		OUT(OK),
	};
	static const struct want wanted[] = {ONE_UNFRAMED(200)};

	CHECK_CONVERSATION(steps, wanted, OPAQUE_FRAMING);
}

/* What was understood before stays right: its responses are still to come. */
TEST(framing_error_in_a_pipelined_request)
{
	static const struct step steps[] = {
		IN("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\nContent-Length: x\r\n\r\n"),
		OUT(OK OK OK),
	};
	static const struct want wanted[] = {
		{METHOD_GET, 200, "/a", END_RESPONSE},
		{METHOD_GET, 200, "/b", END_RESPONSE},
	};

	CHECK_CONVERSATION(steps, wanted, OPAQUE_FRAMING);
}

#define BAD_REQUEST_HEADER(test, header)                                                                          \
	TEST(test)                                                                                                \
	{                                                                                                         \
		static const struct step steps[] = {IN("POST /u HTTP/1.1\r\n" header "\r\n\r\n" GET), OUT(OK)};   \
		CHECK_NO_SPANS(steps, OPAQUE_FRAMING);                                                            \
	}

BAD_REQUEST_HEADER(differing_content_lengths, "Content-Length: 5\r\nContent-Length: 6")
BAD_REQUEST_HEADER(content_length_list, "Content-Length: 5, 5")
BAD_REQUEST_HEADER(content_length_empty, "Content-Length:")
BAD_REQUEST_HEADER(content_length_blank, "Content-Length:  \t ")
BAD_REQUEST_HEADER(content_length_negative, "Content-Length: -1")
BAD_REQUEST_HEADER(content_length_plus, "Content-Length: +1")
BAD_REQUEST_HEADER(content_length_hexadecimal, "Content-Length: 0x10")
BAD_REQUEST_HEADER(content_length_two_numbers, "Content-Length: 1 2")
BAD_REQUEST_HEADER(content_length_letter, "Content-Length: 5a")
BAD_REQUEST_HEADER(content_length_overflow, "Content-Length: 18446744073709551617")
BAD_REQUEST_HEADER(obsolete_fold, "X: a\r\n b")
BAD_REQUEST_HEADER(obsolete_fold_by_tab, "Content-Length: 5\r\n\t5")
BAD_REQUEST_HEADER(obsolete_fold_of_nothing, " Host: a")
BAD_REQUEST_HEADER(transfer_encoding_not_chunked, "Transfer-Encoding: gzip")
BAD_REQUEST_HEADER(transfer_encoding_chunked_first, "Transfer-Encoding: chunked, gzip")
BAD_REQUEST_HEADER(transfer_encoding_identity, "Transfer-Encoding: identity")
BAD_REQUEST_HEADER(transfer_encoding_empty, "Transfer-Encoding:")
BAD_REQUEST_HEADER(transfer_encoding_twice, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")
BAD_REQUEST_HEADER(transfer_encoding_longer_word, "Transfer-Encoding: xchunked")
BAD_REQUEST_HEADER(transfer_encoding_quoted, "Transfer-Encoding: gzip;a=\"chunked\"")

#define BAD_RESPONSE(test, response, status)                                                                      \
	TEST(test)                                                                                                \
	{                                                                                                         \
		static const struct step steps[] = {IN(GET), OUT(response), IN(GET), OUT(OK)};                    \
		static const struct want wanted[] = {ONE_UNFRAMED(status)};                                       \
		CHECK_CONVERSATION(steps, wanted, OPAQUE_FRAMING);                                                \
	}

BAD_RESPONSE(response_with_bad_length, "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", 200)
BAD_RESPONSE(response_with_two_lengths, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n..", 200)
BAD_RESPONSE(response_with_fold, "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", 200)
BAD_RESPONSE(response_not_chunked_last, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", 200)
BAD_RESPONSE(response_of_another_protocol, "220 mail.example ESMTP\r\n", 0)
BAD_RESPONSE(response_version_2, "HTTP/2.0 200 OK\r\n\r\n", 0)
BAD_RESPONSE(response_status_not_a_number, "HTTP/1.1 2x0 OK\r\n\r\n", 0)
BAD_RESPONSE(response_status_too_low, "HTTP/1.1 099 OK\r\n\r\n", 0)
BAD_RESPONSE(response_status_on_the_next_line, "HTTP/1.\n 200 OK\r\n\r\n", 0)
BAD_RESPONSE(response_status_long, "HTTP/1.1 2000 OK\r\n\r\n", 0)
BAD_RESPONSE(response_begins_with_empty_line, "\r\n" OK, 0)
BAD_RESPONSE(response_chunk_size_empty, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", 200)
BAD_RESPONSE(response_chunk_size_not_hexadecimal, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
	     200)
BAD_RESPONSE(response_chunk_size_negative, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 200)
BAD_RESPONSE(response_chunk_size_followed_by_letters,
	     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5xyz\r\nhello\r\n0\r\n\r\n", 200)
BAD_RESPONSE(response_chunk_size_overflow,
	     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n", 200)

/* A broken request body loses the way in, but the response is still followed. */
TEST(request_chunk_size_malformed)
{
	static const struct step steps[] = {
		IN("PUT /u HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n0\r\n\r\n" GET),
		OUT("HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n"),
	};
	static const struct want wanted[] = {{METHOD_PUT, 400, "/u", END_RESPONSE}};

	CHECK_CONVERSATION(steps, wanted, OPAQUE_FRAMING);
}

#define BAD_REQUEST(test, request, reason)                                                                        \
	TEST(test)                                                                                                \
	{                                                                                                         \
		static const struct step steps[] = {IN(request), OUT(OK)};                                        \
		CHECK_NO_SPANS(steps, reason);                                                                    \
	}

BAD_REQUEST(garbage, "\x01\x02\x03\x04hello\n\n", OPAQUE_FRAMING)
BAD_REQUEST(garbage_zeros, "\0\0\0\0\0\0\0\0\0\0\0\n", OPAQUE_FRAMING)
BAD_REQUEST(lower_case_method, "get / HTTP/1.1\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(method_of_sixteen, "ABCDEFGHIJKLMNOP / HTTP/1.1\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(no_method, " / HTTP/1.1\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(no_target, "GET HTTP/1.1\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(no_version, "GET /\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(no_spaces, "GET/HTTP/1.1\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(version_0_9, "GET / HTTP/0.9\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(version_2, "GET / HTTP/2.0\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(version_1_2, "GET / HTTP/1.2\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(version_longer, "GET / HTTP/1.10\r\n\r\n", OPAQUE_FRAMING)
BAD_REQUEST(http_2_preface, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", OPAQUE_HTTP2)

TEST(response_without_a_request)
{
	static const struct step steps[] = {OUT(OK), IN(GET), OUT(OK)};

	CHECK_NO_SPANS(steps, OPAQUE_RESPONSE_WITHOUT_REQUEST);
}

TEST(second_response_to_a_request)
{
	static const struct step steps[] = {IN(GET), OUT(OK OK), IN(GET), OUT(OK)};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CONVERSATION(steps, wanted, OPAQUE_RESPONSE_WITHOUT_REQUEST);
}

TEST(server_that_speaks_first)
{
	static const struct step steps[] = {OUT("220 mail.example ESMTP\r\n"), IN("HELO a\r\n"), OUT("250 a\r\n")};

	CHECK_NO_SPANS(steps, OPAQUE_FRAMING);
}
