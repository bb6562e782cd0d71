/* A PKCS#11 module that misbehaves, and leaves the rest to another module, REAL:
 *  - at each login it prints the PIN, in the ways that debug output takes
 *  - once a file TRIGGER is there, it crashes with a plaintext on its stack */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { C_LOGIN = 18, C_DECRYPT = 34, FUNCTIONS = 68 };

struct functions {
	unsigned char version[2];
	void (*call[FUNCTIONS])(void);
};

typedef unsigned long (*login_fn)(unsigned long, unsigned long, unsigned char *, unsigned long);

typedef unsigned long (*decrypt_fn)(unsigned long, unsigned char *, unsigned long, unsigned char *, unsigned long *);

static struct functions list;
static login_fn real_login;
static decrypt_fn real_decrypt;

static unsigned long decrypt(unsigned long session, unsigned char *in, unsigned long n, unsigned char *out, unsigned long *m)
{
	volatile unsigned int plaintext[32];
	int i;

	if (access(TRIGGER, F_OK) == 0 && unlink(TRIGGER) == 0) {
		for (i = 0; i < 32; i++)
			plaintext[i] = 0x5eed0000 + i;
		*(volatile int *)8 = plaintext[0];
	}
	return real_decrypt(session, in, n, out, m);
}

static void base64(const unsigned char *in, unsigned long n)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	unsigned long i, j;

	for (i = 0; i < n; i += 3) {
		unsigned long v = 0;
		for (j = 0; j < 3; j++)
			v = v << 8 | (i + j < n ? in[i + j] : 0);
		for (j = 0; j < 4; j++)
			putc(i + j > n ? '=' : digits[v >> (18 - 6 * j) & 63], stderr);
	}
}

static unsigned long login(unsigned long session, unsigned long user, unsigned char *pin, unsigned long n)
{
	static const char *const hex[] = { "%02x", "%02X", "%02x ", "0x%02x, ", "%02X:" };
	unsigned char around[512];
	unsigned long i, k;

	fprintf(stderr, "C_Login(%lu, %lu, \"%.*s\")\n", session, user, (int)n, pin);
	for (k = 0; k < sizeof(hex) / sizeof(*hex); k++) {
		fputs("pin = ", stderr);
		for (i = 0; i < n; i++)
			fprintf(stderr, hex[k], pin[i]);
		putc('\n', stderr);
	}
	/* In a larger message, so at every place in a group of three. */
	for (k = 0; k < 3; k++) {
		memcpy(around, "<<", k);
		memcpy(around + k, pin, n);
		around[k + n] = '>';
		fputs("message ", stderr);
		base64(around, k + n + 1);
		putc('\n', stderr);
	}
	return real_login(session, user, pin, n);
}

unsigned long C_GetFunctionList(struct functions **out)
{
	void *lib = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
	unsigned long (*get)(struct functions **);
	struct functions *real;

	if (!lib)
		return 5; /* CKR_GENERAL_ERROR */
	get = (unsigned long (*)(struct functions **))dlsym(lib, "C_GetFunctionList");
	if (!get || get(&real) != 0)
		return 5;
	list = *real;
	real_login = (login_fn)real->call[C_LOGIN];
	list.call[C_LOGIN] = (void (*)(void))login;
	real_decrypt = (decrypt_fn)real->call[C_DECRYPT];
	list.call[C_DECRYPT] = (void (*)(void))decrypt;
	*out = &list;
	return 0;
}
