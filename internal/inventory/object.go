package inventory

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/util/validation"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"kekd/internal/kek"
)

// Class is what is around an object in etcd.
type Class string

// The classes. They are part of the JSON that kekctl prints.
const (
	// KMSv2 objects are encrypted by a KMS v2 provider, under the key of KeyID.
	KMSv2 Class = "kms-v2"
	// OtherProvider objects are encrypted by kube-apiserver's own keys or by KMS v1.
	OtherProvider Class = "other-provider"
	// Unencrypted objects are as kube-apiserver encodes them.
	Unencrypted Class = "unencrypted"
	// Unparsable objects claim to be encrypted, but kube-apiserver could not read
	// them.
	Unparsable Class = "unparsable"
)

// Object is one key of etcd.
type Object struct {
	// Key is the key in etcd, prefix and all.
	Key string
	// Resource is plural, and followed by the group if that stands in the key, as
	// it does for custom resources: secrets, widgets.example.com. Key and Resource
	// are etcd's bytes and may hold anything.
	Resource string
	// Path is what stands in the key behind the resource: namespace and name, or
	// the name alone.
	Path  []string
	Class Class
	// Provider is the name of a KMS v2 provider; of OtherProvider objects it is
	// type, version and name, as in aescbc:v1:key1.
	Provider string
	// KeyID is the key_id of a KMS v2 object, also of an unparsable one if it can be
	// read; else empty.
	KeyID string
	// Problem says why an object is unparsable. It holds nothing of the value.
	Problem string
	// ModRevision is etcd's revision of the last change.
	ModRevision int64
}

// Under reports whether the object's key_id names the KEK with this ring label
// and CKA_ID. The check value is not looked at: a token may not be able to compute
// it any more.
func (o Object) Under(ring string, id kek.ID) bool {
	return o.Class == KMSv2 && under(o.KeyID, ring, id)
}

// Unclear reports whether the object may be encrypted under any key of the ring,
// since it cannot be parsed and does not name its key.
func (o Object) Unclear(ring string) bool {
	return Standing{o.Class, o.Provider, o.KeyID}.unclear(ring)
}

func under(keyID, ring string, id kek.ID) bool {
	check, ok := strings.CutPrefix(keyID, ring+"/"+id.String()+"/")
	return ok && !strings.Contains(check, "/")
}

func (s *Store) object(key, value []byte, revision int64) Object {
	o := Object{Key: string(key), ModRevision: revision}
	o.Resource, o.Path = s.split(o.Key)
	var err error
	if o.Class, o.Provider, o.KeyID, err = classify(value); err != nil {
		o.Problem = err.Error()
	}
	return o
}

// What kube-apiserver puts before an encrypted value: type, version, and the name
// of the provider or of its key, with a colon behind each.
const (
	encrypted   = "k8s:enc:"
	kmsV2       = "kms:v2:"
	maxProvider = 1024 // bytes; kube-apiserver has no limit
)

// otherProviders are the types and versions of kube-apiserver's other providers.
var otherProviders = []string{"aescbc:v1:", "aesgcm:v1:", "secretbox:v1:", "kms:v1:"}

// ofOtherType reports whether a provider, named as in Object, is not of KMS v2.
func ofOtherType(provider string) bool {
	return slices.ContainsFunc(otherProviders, func(kind string) bool { return strings.HasPrefix(provider, kind) })
}

// classify reads what is around a value. The error goes with Unparsable, which keeps
// the provider and the key_id if they can be read.
func classify(value []byte) (class Class, provider, keyID string, err error) {
	rest, ok := bytes.CutPrefix(value, []byte(encrypted))
	if !ok {
		// kube-apiserver's identity provider takes all else as plaintext too.
		return Unencrypted, "", "", nil
	}
	if rest, ok := bytes.CutPrefix(rest, []byte(kmsV2)); ok {
		provider, data, err := cutProvider(rest)
		if err != nil {
			return Unparsable, "", "", err
		}
		keyID, err := decode(data)
		if err != nil {
			return Unparsable, provider, keyID, err
		}
		return KMSv2, provider, keyID, nil
	}
	for _, kind := range otherProviders {
		if rest, ok := bytes.CutPrefix(rest, []byte(kind)); ok {
			name, _, err := cutProvider(rest)
			if err != nil {
				return Unparsable, kind, "", err
			}
			return OtherProvider, kind + name, "", nil
		}
	}
	return Unparsable, "", "", errors.New("the provider is of an unknown type")
}

// cutProvider cuts the name before the first colon.
func cutProvider(b []byte) (name string, rest []byte, err error) {
	end := bytes.IndexByte(b[:min(len(b), maxProvider+1)], ':')
	if end <= 0 || !utf8.Valid(b[:end]) {
		return "", nil, errors.New("the provider has no proper name")
	}
	return string(b[:end]), b[end+1:], nil
}

// The limits of kube-apiserver.
const (
	maxKeyID       = 1024
	maxDEKSource   = 1024
	maxAnnotations = 32 * 1024
)

// decode returns the key_id of a stored object that kube-apiserver would take to
// its KMS plugin. These are the checks of kmsv2.ValidateEncryptedObject, whose
// package would bring most of kube-apiserver along. The key_id comes with an error
// if it can be read.
func decode(data []byte) (keyID string, err error) {
	o := new(kmstypes.EncryptedObject)
	if err := proto.Unmarshal(data, o); err != nil {
		return "", errors.New("it is not an EncryptedObject of KMS v2")
	}
	if len(o.KeyID) <= maxKeyID {
		keyID = o.KeyID
	}
	return keyID, validate(o)
}

func validate(o *kmstypes.EncryptedObject) error {
	if _, known := kmstypes.EncryptedDEKSourceType_name[int32(o.EncryptedDEKSourceType)]; !known {
		return fmt.Errorf("encryptedDEKSourceType is %d, which kube-apiserver does not know", o.EncryptedDEKSourceType)
	}
	if len(o.EncryptedData) == 0 {
		return errors.New("encryptedData is empty")
	}
	if n := len(o.EncryptedDEKSource); n == 0 || n > maxDEKSource {
		return fmt.Errorf("encryptedDEKSource has %d bytes, not 1 to %d", n, maxDEKSource)
	}
	if n := len(o.KeyID); n == 0 || n > maxKeyID {
		return fmt.Errorf("keyID has %d bytes, not 1 to %d", n, maxKeyID)
	}
	size := 0
	for name, value := range o.Annotations {
		size += len(name) + len(value)
		if len(validation.IsFullyQualifiedDomainName(nil, name)) > 0 {
			return errors.New("an annotation's name is not a domain name")
		}
	}
	if size > maxAnnotations {
		return fmt.Errorf("the annotations have %d bytes, more than %d", size, maxAnnotations)
	}
	return nil
}

// Standing returns what stands around the object.
func (o Object) Standing() Standing { return Standing{o.Class, o.Provider, o.KeyID} }
