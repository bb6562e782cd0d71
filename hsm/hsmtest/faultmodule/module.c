// A PKCS#11 module for tests: it stands before a real one (KEKD_FAULTS_MODULE)
// and does harm on command. PKCS#11 v2.40, OASIS; the headers are the binding's.
#include "control.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "pkcs11go.h"

enum { IV_WRITTEN = 12, IV_APPENDED = 16, SESSIONS = 256 };

static CK_FUNCTION_LIST_PTR real; // the module behind this one
static CK_FUNCTION_LIST list;     // what callers get

// encryption is what a session's C_EncryptInit leaves for C_Encrypt.
struct encryption {
	CK_SESSION_HANDLE session; // 0: free
	CK_BYTE_PTR to;            // where the IV is written back, or NULL
	CK_BYTE iv[IV_APPENDED];
	CK_ULONG append; // how much of it is appended to the output
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
// Guarded by mutex.
static struct encryption encryptions[SESSIONS];
static long open_sessions;
static CK_SESSION_HANDLE last_session;
static CK_SLOT_ID last_slot;

// harm does to a call what f says, but for the results of the real call. It
// reports whether the call ends with f->rv.
static bool harm(const struct fault *f)
{
	CK_SESSION_HANDLE session;
	CK_SLOT_ID slot;

	if (f->print[0])
		fprintf(stderr, "%s\n", f->print);
	if (f->ms)
		usleep(f->ms * 1000);
	if (f->leak) {
		char *lost = malloc(f->leak << 20);
		if (lost)
			memset(lost, 1, f->leak << 20);
		// Or the compiler would leave out what nobody reads.
		__asm__ volatile("" : : "r"(lost) : "memory");
	}
	if (f->crash)
		*(volatile int *)NULL = 0;
	if (f->abort)
		abort();
	if (f->exit)
		exit(0);
	while (f->hang)
		pause();
	pthread_mutex_lock(&mutex);
	session = last_session;
	slot = last_slot;
	if (f->closeall)
		open_sessions = 0;
	pthread_mutex_unlock(&mutex);
	if (f->logout)
		real->C_Logout(session);
	if (f->closeall)
		real->C_CloseAllSessions(slot);
	return f->has_rv;
}

// FORWARD defines a function that calls the real one of its name. With "after"
// the real call takes effect before its answer is replaced.
#define FORWARD(name, params, args)                       \
	static CK_RV fault_##name params                  \
	{                                                 \
		struct fault f;                           \
		CK_RV rv = CKR_OK;                        \
		control_take(#name, &f);                  \
		if (f.after)                              \
			rv = real->name args;             \
		if (harm(&f))                             \
			return f.rv;                      \
		return f.after ? rv : real->name args;    \
	}

FORWARD(C_Initialize, (CK_VOID_PTR a), (a))
FORWARD(C_Finalize, (CK_VOID_PTR a), (a))
FORWARD(C_GetInfo, (CK_INFO_PTR i), (i))
FORWARD(C_GetSlotList, (CK_BBOOL present, CK_SLOT_ID_PTR l, CK_ULONG_PTR n), (present, l, n))
FORWARD(C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO_PTR i), (slot, i))
FORWARD(C_GetMechanismInfo, (CK_SLOT_ID slot, CK_MECHANISM_TYPE m, CK_MECHANISM_INFO_PTR i), (slot, m, i))
FORWARD(C_GetSessionInfo, (CK_SESSION_HANDLE s, CK_SESSION_INFO_PTR i), (s, i))
FORWARD(C_Login, (CK_SESSION_HANDLE s, CK_USER_TYPE u, CK_UTF8CHAR_PTR pin, CK_ULONG n), (s, u, pin, n))
FORWARD(C_FindObjectsInit, (CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR a, CK_ULONG n), (s, a, n))
FORWARD(C_FindObjects, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE_PTR o, CK_ULONG max, CK_ULONG_PTR n), (s, o, max, n))
FORWARD(C_FindObjectsFinal, (CK_SESSION_HANDLE s), (s))
FORWARD(C_GetAttributeValue, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, CK_ATTRIBUTE_PTR a, CK_ULONG n), (s, o, a, n))
FORWARD(C_SetAttributeValue, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, CK_ATTRIBUTE_PTR a, CK_ULONG n), (s, o, a, n))
FORWARD(C_GenerateKey, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_OBJECT_HANDLE_PTR o), (s, m, a, n, o))
FORWARD(C_GenerateKeyPair, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR pub, CK_ULONG npub, CK_ATTRIBUTE_PTR priv, CK_ULONG npriv, CK_OBJECT_HANDLE_PTR opub, CK_OBJECT_HANDLE_PTR opriv),
	(s, m, pub, npub, priv, npriv, opub, opriv))
FORWARD(C_DestroyObject, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o), (s, o))
FORWARD(C_DecryptInit, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k), (s, m, k))
FORWARD(C_SignInit, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k), (s, m, k))
FORWARD(C_Sign, (CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR size), (s, in, n, out, size))

static CK_RV fault_C_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR app, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR s)
{
	struct fault f;
	CK_RV rv;

	control_take("C_OpenSession", &f);
	if (!f.after && harm(&f))
		return f.rv;
	pthread_mutex_lock(&mutex);
	if (f.limit >= 0 && open_sessions >= f.limit) {
		pthread_mutex_unlock(&mutex);
		return CKR_SESSION_COUNT;
	}
	open_sessions++;
	pthread_mutex_unlock(&mutex);
	rv = real->C_OpenSession(slot, flags, app, notify, s);
	pthread_mutex_lock(&mutex);
	if (rv != CKR_OK)
		open_sessions--;
	else
		last_session = *s, last_slot = slot;
	pthread_mutex_unlock(&mutex);
	return f.after && harm(&f) ? f.rv : rv;
}

static CK_RV fault_C_CloseSession(CK_SESSION_HANDLE s)
{
	struct fault f;
	CK_RV rv;

	control_take("C_CloseSession", &f);
	if (!f.after && harm(&f))
		return f.rv;
	rv = real->C_CloseSession(s);
	pthread_mutex_lock(&mutex);
	if (rv == CKR_OK && open_sessions > 0)
		open_sessions--;
	pthread_mutex_unlock(&mutex);
	return f.after && harm(&f) ? f.rv : rv;
}

// remember keeps what C_Encrypt on a session has to do with the IV.
static void remember(CK_SESSION_HANDLE s, const CK_BYTE *iv, CK_BYTE_PTR to, CK_ULONG append)
{
	int i, slot = 0;

	pthread_mutex_lock(&mutex);
	for (i = SESSIONS - 1; i >= 0; i--)
		if (encryptions[i].session == s || !encryptions[i].session)
			slot = i;
	for (i = 0; i < SESSIONS; i++)
		if (encryptions[i].session == s)
			slot = i;
	encryptions[slot] = (struct encryption){ s, to, { 0 }, append };
	memcpy(encryptions[slot].iv, iv, append ? IV_APPENDED : IV_WRITTEN);
	pthread_mutex_unlock(&mutex);
}

// recall returns it and forgets it; session is 0 when there is nothing to do.
static struct encryption recall(CK_SESSION_HANDLE s)
{
	struct encryption e = { 0 };
	int i;

	pthread_mutex_lock(&mutex);
	for (i = 0; i < SESSIONS; i++)
		if (encryptions[i].session == s) {
			e = encryptions[i];
			encryptions[i].session = 0;
			break;
		}
	pthread_mutex_unlock(&mutex);
	return e;
}

// encrypt_init treats the IV of AES-GCM as some HSMs do:
//
//	cloudhsm  twelve zero bytes are wanted, and the HSM's own IV is written over
//	          them (AWS CloudHSM, client SDK 5)
//	luna      whatever is given, the HSM draws sixteen bytes and appends them to
//	          the output (Thales Luna in FIPS mode)
static CK_RV encrypt_init(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE key, const char *mode)
{
	static const CK_BYTE zeros[IV_WRITTEN];
	bool luna = !strcmp(mode, "luna"), cloudhsm = !strcmp(mode, "cloudhsm");
	CK_BYTE iv[IV_APPENDED];
	CK_GCM_PARAMS gcm;
	CK_MECHANISM own;
	CK_RV rv;

	recall(s);
	if (m->mechanism != CKM_AES_GCM || !(luna || cloudhsm))
		return real->C_EncryptInit(s, m, key);
	gcm = *(CK_GCM_PARAMS *)m->pParameter;
	if (cloudhsm && (gcm.ulIvLen != IV_WRITTEN || !gcm.pIv || memcmp(gcm.pIv, zeros, IV_WRITTEN)))
		return CKR_MECHANISM_PARAM_INVALID;
	if (getrandom(iv, sizeof(iv), 0) != sizeof(iv))
		return CKR_DEVICE_ERROR;
	own = (CK_MECHANISM){ CKM_AES_GCM, &gcm, sizeof(gcm) };
	CK_BYTE_PTR to = luna ? NULL : gcm.pIv;
	gcm.pIv = iv;
	gcm.ulIvLen = luna ? IV_APPENDED : IV_WRITTEN;
	gcm.ulIvBits = 8 * gcm.ulIvLen;
	rv = real->C_EncryptInit(s, &own, key);
	if (rv == CKR_OK)
		remember(s, iv, to, luna ? IV_APPENDED : 0);
	return rv;
}

static CK_RV fault_C_EncryptInit(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE key)
{
	struct fault f;
	CK_RV rv = CKR_OK;

	control_take("C_EncryptInit", &f);
	if (f.after)
		rv = encrypt_init(s, m, key, f.iv);
	if (harm(&f))
		return f.rv;
	return f.after ? rv : encrypt_init(s, m, key, f.iv);
}

static CK_RV encrypt(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR size)
{
	struct encryption e = recall(s);
	CK_ULONG room = *size;
	CK_RV rv = real->C_Encrypt(s, in, n, out, size);

	if (rv != CKR_OK || !e.session)
		return rv;
	if (e.to)
		memcpy(e.to, e.iv, IV_WRITTEN);
	if (e.append && out) {
		if (*size + e.append > room)
			return CKR_BUFFER_TOO_SMALL;
		memcpy(out + *size, e.iv, e.append);
	}
	*size += e.append;
	return rv;
}

// FORWARD_OUT is FORWARD for operations whose output can be garbled.
#define FORWARD_OUT(name, call)                                                                              \
	static CK_RV fault_##name(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR size) \
	{                                                                                                    \
		struct fault f;                                                                              \
		CK_RV rv = CKR_OK;                                                                           \
		control_take(#name, &f);                                                                     \
		if (f.after)                                                                                 \
			rv = call(s, in, n, out, size);                                                      \
		if (harm(&f))                                                                                \
			return f.rv;                                                                         \
		if (!f.after)                                                                                \
			rv = call(s, in, n, out, size);                                                      \
		if (f.garble && rv == CKR_OK && out && *size)                                                \
			out[0] ^= 1;                                                                         \
		return rv;                                                                                   \
	}

FORWARD_OUT(C_Encrypt, encrypt)
FORWARD_OUT(C_Decrypt, real->C_Decrypt)

#define REPLACE(name) list.name = fault_##name

static CK_RV load(void)
{
	const char *path = getenv("KEKD_FAULTS_MODULE");
	CK_C_GetFunctionList get;
	void *lib;

	if (!control_open())
		return CKR_GENERAL_ERROR;
	if (!path) {
		fprintf(stderr, "kekd-faults: KEKD_FAULTS_MODULE is not set: give the path of the real module\n");
		return CKR_GENERAL_ERROR;
	}
	lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	get = lib ? (CK_C_GetFunctionList)dlsym(lib, "C_GetFunctionList") : NULL;
	if (!get || get(&real) != CKR_OK) {
		fprintf(stderr, "kekd-faults: load %s: %s\n", path, dlerror());
		real = NULL;
		return CKR_GENERAL_ERROR;
	}
	list = *real;
	list.C_GetFunctionList = C_GetFunctionList;
	REPLACE(C_Initialize);
	REPLACE(C_Finalize);
	REPLACE(C_GetInfo);
	REPLACE(C_GetSlotList);
	REPLACE(C_GetTokenInfo);
	REPLACE(C_GetMechanismInfo);
	REPLACE(C_OpenSession);
	REPLACE(C_CloseSession);
	REPLACE(C_GetSessionInfo);
	REPLACE(C_Login);
	REPLACE(C_FindObjectsInit);
	REPLACE(C_FindObjects);
	REPLACE(C_FindObjectsFinal);
	REPLACE(C_GetAttributeValue);
	REPLACE(C_SetAttributeValue);
	REPLACE(C_GenerateKey);
	REPLACE(C_GenerateKeyPair);
	REPLACE(C_DestroyObject);
	REPLACE(C_EncryptInit);
	REPLACE(C_Encrypt);
	REPLACE(C_DecryptInit);
	REPLACE(C_Decrypt);
	REPLACE(C_SignInit);
	REPLACE(C_Sign);
	return CKR_OK;
}

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR to)
{
	CK_RV rv = CKR_OK;

	pthread_mutex_lock(&mutex);
	if (!real)
		rv = load();
	else if (!control_open()) // who opens the module again may have other files
		rv = CKR_GENERAL_ERROR;
	pthread_mutex_unlock(&mutex);
	*to = rv == CKR_OK ? &list : NULL;
	return rv;
}
