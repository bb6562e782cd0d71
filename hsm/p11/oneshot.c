#include "oneshot.h"

#include <dlfcn.h>
#include <string.h>

enum { C_LOGIN = 18, FUNCTIONS = 68 };

// CK_FUNCTION_LIST: a version, then the functions in the order of the standard.
struct kekd_functions {
	unsigned char version[2];
	void (*call[FUNCTIONS])(void);
};

typedef ck_ulong (*get_list_fn)(struct kekd_functions **);
typedef ck_ulong (*init_fn)(ck_ulong, struct ck_mechanism *, ck_ulong);
typedef ck_ulong (*crypt_fn)(ck_ulong, unsigned char *, ck_ulong,
			     unsigned char *, ck_ulong *);
typedef ck_ulong (*login_fn)(ck_ulong, ck_ulong, unsigned char *, ck_ulong);

struct kekd_functions *kekd_load(const char *path)
{
	struct kekd_functions *list = NULL;
	void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	get_list_fn get;

	if (!lib)
		return NULL;
	get = (get_list_fn)dlsym(lib, "C_GetFunctionList");
	if (!get || get(&list) != 0)
		return NULL;
	return list;
}

char *kekd_check(const char *path)
{
	void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);

	if (!lib)
		return strdup(dlerror());
	if (!dlsym(lib, "C_GetFunctionList"))
		return strdup("it is a library, but has no C_GetFunctionList");
	return NULL;
}

ck_ulong kekd_run(struct kekd_functions *f, enum kekd_op op, ck_ulong session,
		  ck_ulong key, ck_ulong mechanism, unsigned char *iv,
		  ck_ulong iv_len, unsigned char *aad, ck_ulong aad_len,
		  ck_ulong tag_bits, unsigned char *in, ck_ulong in_len,
		  unsigned char *out, ck_ulong *out_len, int *at_init)
{
	// iv_bits is set although the standard's text and header disagree on it:
	// Luna fails on 0, NSS wants 8 times the length, nobody minds.
	struct ck_gcm_params gcm = { iv, iv_len, 8 * iv_len, aad, aad_len, tag_bits };
	struct ck_mechanism m = { mechanism, NULL, 0 };
	ck_ulong rv;

	if (tag_bits) {
		m.parameter = &gcm;
		m.parameter_len = sizeof(gcm);
	} else if (iv_len) {
		m.parameter = iv;
		m.parameter_len = iv_len;
	}
	*at_init = 1;
	rv = ((init_fn)f->call[op])(session, &m, key);
	if (rv != 0)
		return rv;
	*at_init = 0;
	return ((crypt_fn)f->call[op + 1])(session, in, in_len, out, out_len);
}

ck_ulong kekd_login(struct kekd_functions *f, ck_ulong session,
		    unsigned char *pin, ck_ulong pin_len)
{
	return ((login_fn)f->call[C_LOGIN])(session, 1 /* CKU_USER */, pin, pin_len);
}
