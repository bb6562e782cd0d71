// One-call Cryptoki operations: Init and the operation itself in one crossing
// from Go, with parameters that live until both are done.
#ifndef KEKD_ONESHOT_H
#define KEKD_ONESHOT_H

#include <stddef.h>

// The few types of PKCS#11 v2.40 (OASIS, section 3) that are needed here. On
// Unix the structures are not packed and CK_ULONG is unsigned long.
typedef unsigned long ck_ulong;

struct ck_mechanism {
	ck_ulong mechanism;
	void *parameter;
	ck_ulong parameter_len;
};

struct ck_gcm_params {
	unsigned char *iv;
	ck_ulong iv_len;
	ck_ulong iv_bits;
	unsigned char *aad;
	ck_ulong aad_len;
	ck_ulong tag_bits;
};

// What to run. Init is the index of the operation's C_*Init in the function
// list; the one-call operation always follows it directly.
enum kekd_op {
	KEKD_ENCRYPT = 29,
	KEKD_DECRYPT = 33,
	KEKD_SIGN = 42,
};

struct kekd_functions;

// kekd_load opens the library once more (the loader counts references) and
// returns its function list, or NULL.
struct kekd_functions *kekd_load(const char *path);

// kekd_check tells why a file cannot be loaded as a PKCS#11 module: NULL when
// it can, else a message that the caller frees.
char *kekd_check(const char *path);

// kekd_run runs Init and the operation. The mechanism takes GCM parameters when
// tag_bits is not 0, else the IV alone. *at_init tells which of the two the
// return value is of.
ck_ulong kekd_run(struct kekd_functions *f, enum kekd_op op, ck_ulong session,
		  ck_ulong key, ck_ulong mechanism, unsigned char *iv,
		  ck_ulong iv_len, unsigned char *aad, ck_ulong aad_len,
		  ck_ulong tag_bits, unsigned char *in, ck_ulong in_len,
		  unsigned char *out, ck_ulong *out_len, int *at_init);

// kekd_login logs the user (CKU_USER) in; a NULL pin asks the token's PIN pad.
ck_ulong kekd_login(struct kekd_functions *f, ck_ulong session,
		    unsigned char *pin, ck_ulong pin_len);

#endif
