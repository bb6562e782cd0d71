package inventory

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"kekd/internal/kek"
)

func underKey(id string) string {
	return string(sealed(func(o *kmstypes.EncryptedObject) { o.KeyID = id }))
}

func take(t *testing.T, content map[string]string) *Report {
	t.Helper()
	r, err := newFake(t, content).store().Take(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReport(t *testing.T) {
	t.Parallel()
	r := take(t, map[string]string{
		"/registry/secrets/a/1":             underKey("ring/02/000000"),
		"/registry/secrets/a/2":             underKey("ring/02/000000"),
		"/registry/secrets/a/3":             underKey("ring/01/000000"),
		"/registry/secrets/a/4":             "k8s:enc:aescbc:v1:key1:x",
		"/registry/secrets/a/5":             "k8s\x00",
		"/registry/secrets/a/6":             "k8s:enc:kms:v2:kekd:x",
		"/registry/example.com/widgets/a/1": underKey("ring/01/a1b2c3"),
	})
	if r.Began.IsZero() || r.Seconds <= 0 {
		t.Errorf("began %v, took %v s", r.Began, r.Seconds)
	}
	r.Seconds = 0
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "began")
	var want map[string]any
	if err := json.Unmarshal([]byte(`{
		"endpoint": "http://fake:2379", "prefix": "/registry/", "seconds": 0, "revision": 1, "compacted": 0, "objects": 8,
		"stores": [{"endpoint": "http://fake:2379", "prefix": "/registry/", "revision": 1, "compacted": 0}],
		"totals": [
			{"class": "kms-v2", "provider": "kekd", "keyID": "ring/02/000000", "objects": 2},
			{"class": "kms-v2", "provider": "kekd", "keyID": "ring/01/000000", "objects": 1},
			{"class": "kms-v2", "provider": "kekd", "keyID": "ring/01/a1b2c3", "objects": 1},
			{"class": "other-provider", "provider": "aescbc:v1:key1", "objects": 1},
			{"class": "unencrypted", "objects": 2},
			{"class": "unparsable", "provider": "kekd", "objects": 1}
		],
		"resources": [
			{"resource": "namespaces", "objects": 1, "counts": [{"class": "unencrypted", "objects": 1}]},
			{"resource": "secrets", "objects": 6, "counts": [
				{"class": "kms-v2", "provider": "kekd", "keyID": "ring/02/000000", "objects": 2},
				{"class": "kms-v2", "provider": "kekd", "keyID": "ring/01/000000", "objects": 1},
				{"class": "other-provider", "provider": "aescbc:v1:key1", "objects": 1},
				{"class": "unencrypted", "objects": 1},
				{"class": "unparsable", "provider": "kekd", "objects": 1}
			]},
			{"resource": "widgets.example.com", "objects": 1, "counts": [
				{"class": "kms-v2", "provider": "kekd", "keyID": "ring/01/a1b2c3", "objects": 1}
			]}
		],
		"unparsable": [{"key": "/registry/secrets/a/6", "problem": "it is not an EncryptedObject of KMS v2"}]
	}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	for id, want := range map[string]Uses{
		"\x01": {Objects: 2, Unclear: 1, Resources: map[string]int64{"secrets": 2, "widgets.example.com": 1}},
		"\x02": {Objects: 2, Unclear: 1, Resources: map[string]int64{"secrets": 3}},
		"\x03": {Unclear: 1, Resources: map[string]int64{"secrets": 1}},
	} {
		if diff := cmp.Diff(want, r.Under("ring", kek.ID(id))); diff != "" {
			t.Errorf("under %x (-want +got):\n%s", id, diff)
		}
	}
}

// What an attacker writes into etcd does not make the report grow, and hides no
// object from Under.
func TestReportIsBounded(t *testing.T) {
	t.Parallel()
	content := map[string]string{}
	for i := range 3 * maxStandings {
		content[fmt.Sprintf("/registry/a/%04d", i)] = underKey(fmt.Sprintf("ring/%04d/000000", i))
		content[fmt.Sprintf("/registry/b/%04d", i)] = fmt.Sprintf("k8s:enc:aescbc:v1:key%d:x", i)
		content[fmt.Sprintf("/registry/c/%04d", i)] = fmt.Sprintf("k8s:enc:kms:v2:provider%d:x", i)
		content["/registry/d"+strings.Repeat("d", i+maxName)+"/x"] = "x"
	}
	content["/registry/a/zz"] = "x"
	r := take(t, content)
	if len(r.Unparsable) != maxSamples {
		t.Errorf("%d samples, want %d", len(r.Unparsable), maxSamples)
	}
	got := map[string]map[Class]Count{}
	for _, resource := range r.Resources {
		got[resource.Resource] = map[Class]Count{}
		if len(resource.Counts) > maxStandings+2 {
			t.Errorf("%s has %d counts", resource.Resource, len(resource.Counts))
		}
		for _, c := range resource.Counts {
			if c.Provider == "" {
				got[resource.Resource][c.Class] = c
			}
		}
	}
	unlisted := func(class Class, n int64) map[Class]Count {
		return map[Class]Count{class: {Standing{Class: class}, n}}
	}
	a := unlisted(KMSv2, 2*maxStandings)
	a[Unencrypted] = Count{Standing{Class: Unencrypted}, 1}
	want := map[string]map[Class]Count{
		"a":          a,
		"b":          unlisted(OtherProvider, 2*maxStandings),
		"c":          unlisted(Unparsable, 2*maxStandings),
		"namespaces": unlisted(Unencrypted, 1),
		Unlisted:     unlisted(Unencrypted, 3*maxStandings),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what is not listed (-want +got):\n%s", diff)
	}
	// Those of resource c cannot be parsed.
	want2 := Uses{Unclear: 2*maxStandings + 3*maxStandings, Resources: map[string]int64{"a": 2 * maxStandings, "c": 3 * maxStandings}}
	if diff := cmp.Diff(want2, r.Under("ring", "\x02\x50")); diff != "" {
		t.Errorf("under an unlisted key (-want +got):\n%s", diff)
	}
}

// What cannot be parsed counts for the key that it names, else for every key.
func TestReportUnder(t *testing.T) {
	t.Parallel()
	const first, second = "\x01", "\x02"
	damaged := func(keyID string) string {
		return string(sealed(func(o *kmstypes.EncryptedObject) { o.KeyID, o.EncryptedDEKSourceType = keyID, 2 }))
	}
	for name, c := range map[string]struct {
		value         string
		first, second Uses
	}{
		"whole":                      {underKey("ring/01/a1b2c3"), Uses{Objects: 1}, Uses{}},
		"another ring":               {underKey("other/01/a1b2c3"), Uses{}, Uses{}},
		"unknown type":               {damaged("ring/02/a1b2c3"), Uses{}, Uses{Objects: 1}},
		"unknown type, no check":     {damaged("ring/02"), Uses{Unclear: 1}, Uses{Unclear: 1}},
		"unknown type, another ring": {damaged("other/02/a1b2c3"), Uses{Unclear: 1}, Uses{Unclear: 1}},
		"unknown type, no key_id":    {damaged(""), Uses{Unclear: 1}, Uses{Unclear: 1}},
		"garbage":                    {"k8s:enc:kms:v2:kekd:x", Uses{Unclear: 1}, Uses{Unclear: 1}},
		"no provider":                {"k8s:enc:kms:v2:", Uses{Unclear: 1}, Uses{Unclear: 1}},
		"cut off":                    {"k8s:enc:km", Uses{Unclear: 1}, Uses{Unclear: 1}},
		"aescbc":                     {"k8s:enc:aescbc:v1:key1:x", Uses{}, Uses{}},
		"aescbc, no provider":        {"k8s:enc:aescbc:v1:", Uses{}, Uses{}},
		"plaintext":                  {"k8s\x00", Uses{}, Uses{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := take(t, map[string]string{"/registry/secrets/a/1": c.value})
			for id, want := range map[kek.ID]Uses{first: c.first, second: c.second} {
				want.Resources = map[string]int64{}
				if !want.None() {
					want.Resources["secrets"] = 1
				}
				if diff := cmp.Diff(want, r.Under("ring", id)); diff != "" {
					t.Errorf("under %s (-want +got):\n%s", id, diff)
				}
			}
		})
	}
}

func TestTallyIsBounded(t *testing.T) {
	t.Parallel()
	ta := tally{resources: map[string]standings{}}
	for i := range 2 * maxResources {
		for j := range 3 {
			ta.add(Object{Resource: fmt.Sprint("r", i), Class: KMSv2, Provider: "kekd", KeyID: fmt.Sprint(i, "/", j)})
		}
	}
	ta.add(Object{Key: strings.Repeat("k", 1<<20), Resource: "r", Class: Unparsable})
	r := ta.report()
	rows := 0
	for _, resource := range r.Resources {
		rows += len(resource.Counts)
	}
	if len(r.Resources) != maxResources+1 || rows > maxStandingsTotal+maxResources+2 || r.Objects != 6*maxResources+1 {
		t.Errorf("%d resources, %d rows, %d objects", len(r.Resources), rows, r.Objects)
	}
	if n := len(r.Unparsable[0].Key); n != maxSampleKey {
		t.Errorf("a sample's key has %d bytes, want %d", n, maxSampleKey)
	}
}
