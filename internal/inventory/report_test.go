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
		"unparsable": [{"key": "/registry/secrets/a/6", "problem": "it is no EncryptedObject of KMS v2"}]
	}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	for id, want := range map[string]map[string]int64{
		"\x01": {"secrets": 1, "widgets.example.com": 1},
		"\x02": {"secrets": 2},
		"\x03": {},
	} {
		total, resources := r.Under("ring", kek.ID(id))
		var sum int64
		for _, n := range want {
			sum += n
		}
		if diff := cmp.Diff(want, resources); diff != "" || total != sum {
			t.Errorf("%d under %x, want %d (-want +got):\n%s", total, id, sum, diff)
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
	if total, _ := r.Under("ring", "\x02\x50"); total != 2*maxStandings {
		t.Errorf("%d objects under an unlisted key, want %d", total, 2*maxStandings)
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
