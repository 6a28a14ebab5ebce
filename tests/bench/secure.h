/* TLS 1.3 with a certificate on both sides, and the proof that a token is ours to show.
 *
 * Compiled only with -DWITH_TLS, which needs OpenSSL: the plain load generator does without. The first
 * failure ends the run, as in meter.h. `receive` and `send` answer as recv and send do on a socket that
 * does not block: -1 with EAGAIN when there is nothing, 0 when the other end has hung up.
 */
#ifndef WARREN_BENCH_SECURE_H
#define WARREN_BENCH_SECURE_H

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>

#include "meter.h"

enum { RECORD = 16384, AHEAD = 128 << 10, NONCE = 32, PROOF = 64, LARGEST_CHAIN = 4096 };

static SSL_CTX *tls_context;

static struct {
	uint8_t chain[LARGEST_CHAIN];
	size_t length;
	const char *server;        /* whom it is shown to: the name in the server's certificate */
	EVP_PKEY *key;
} token;

static void tls_failed(const char *what)
{
	char text[200] = "no reason given";
	unsigned long code = ERR_get_error();
	if (code)
		ERR_error_string_n(code, text, sizeof text);
	errx(1, "tls: %s: %s", what, text);
}

/* DIR holds cert.pem, key.pem and ca.pem. */
static void tls_identity(const char *dir)
{
	char cert[2048], key[2048], roots[2048];
	static const uint8_t protocol[] = "\x08warren/1";
	snprintf(cert, sizeof cert, "%s/cert.pem", dir);
	snprintf(key, sizeof key, "%s/key.pem", dir);
	snprintf(roots, sizeof roots, "%s/ca.pem", dir);
	tls_context = SSL_CTX_new(TLS_client_method());
	if (!tls_context || !SSL_CTX_set_min_proto_version(tls_context, TLS1_3_VERSION)
	    || SSL_CTX_use_certificate_chain_file(tls_context, cert) != 1
	    || SSL_CTX_use_PrivateKey_file(tls_context, key, SSL_FILETYPE_PEM) != 1
	    || SSL_CTX_load_verify_file(tls_context, roots) != 1
	    || SSL_CTX_set_alpn_protos(tls_context, protocol, sizeof protocol - 1))
		tls_failed(dir);
	SSL_CTX_set_verify(tls_context, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_session_cache_mode(tls_context, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_options(tls_context, SSL_OP_NO_TICKET);
	SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_read_ahead(tls_context, 1);
	SSL_CTX_set_default_read_buffer_len(tls_context, AHEAD);
}

static SSL *tls_dial(int fd)
{
	SSL *tls = SSL_new(tls_context);
	if (!tls || !SSL_set_fd(tls, fd) || SSL_connect(tls) != 1)
		tls_failed("handshake");
	if (SSL_session_reused(tls))
		errx(1, "tls: a session was resumed, and only full handshakes count");
	return tls;
}

static ssize_t tls_answer(SSL *tls, int n)
{
	if (n > 0)
		return n;
	switch (SSL_get_error(tls, n)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE:
		errno = EAGAIN;
		return -1;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	case SSL_ERROR_SYSCALL:
		errno = errno ? errno : ECONNRESET;
		return -1;
	default:
		ERR_clear_error();
		errno = EPROTO;
		return -1;
	}
}

static ssize_t tls_receive(SSL *tls, uint8_t *into, size_t room)
{
	ERR_clear_error();
	errno = 0;
	return tls_answer(tls, SSL_read(tls, into, (int)room));
}

static ssize_t tls_send(SSL *tls, const uint8_t *data, size_t length)
{
	ERR_clear_error();
	errno = 0;
	return tls_answer(tls, SSL_write(tls, data, (int)length));
}

/* DIR holds chain, and its last key as holder.pem. */
static void token_load(const char *dir, const char *server)
{
	char path[2048];
	snprintf(path, sizeof path, "%s/chain", dir);
	FILE *f = fopen(path, "rb");
	if (!f || !(token.length = fread(token.chain, 1, sizeof token.chain, f)))
		errx(1, "%s: %s", path, strerror(errno));
	fclose(f);
	snprintf(path, sizeof path, "%s/holder.pem", dir);
	BIO *key = BIO_new_file(path, "r");
	if (!key || !(token.key = PEM_read_bio_PrivateKey(key, NULL, NULL, NULL)))
		tls_failed(path);
	BIO_free(key);
	token.server = server;
}

/* Sign for this nonce and this server, as docs/tokens.md says. */
static void token_prove(const uint8_t *nonce, uint8_t *proof)
{
	uint8_t message[512], held[64 + LARGEST_CHAIN];
	size_t length = PROOF, name = strlen(token.server);
	size_t head = sizeof "warren token proof 1", tag = sizeof "warren token chain 1";
	memcpy(held, "warren token chain 1", tag);
	memcpy(held + tag, token.chain, token.length);
	memcpy(message, "warren token proof 1", head);
	memcpy(message + head, nonce, NONCE);
	if (name > sizeof message - head - NONCE - 32)
		errx(1, "%s: too long a name", token.server);
	memcpy(message + head + NONCE + 32, token.server, name);
	EVP_MD_CTX *signer = EVP_MD_CTX_new();
	if (!EVP_Digest(held, tag + token.length, message + head + NONCE, NULL, EVP_sha256(), NULL) || !signer
	    || EVP_DigestSignInit(signer, NULL, NULL, NULL, token.key) != 1
	    || EVP_DigestSign(signer, proof, &length, message, head + NONCE + 32 + name) != 1 || length != PROOF)
		tls_failed("signing");
	EVP_MD_CTX_free(signer);
}

#endif
