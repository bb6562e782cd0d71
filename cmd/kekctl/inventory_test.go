package main

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/inventory"
)

func TestInventoryOutput(t *testing.T) {
	t.Parallel()
	count := func(n int64, class inventory.Class, provider, keyID string) inventory.Count {
		return inventory.Count{Standing: inventory.Standing{Class: class, Provider: provider, KeyID: keyID}, Objects: n}
	}
	report := &inventory.Report{
		Endpoint: "https://127.0.0.1:2379", Prefix: "/registry/", Seconds: 1.2345,
		Pass:    inventory.Pass{Revision: 42, Compacted: 1},
		Objects: 13,
		Resources: []inventory.Resource{
			{Resource: "secrets", Objects: 12, Counts: []inventory.Count{
				count(10, inventory.KMSv2, "kekd", "k8s-kek/01/a1b2c3"),
				count(1, inventory.KMSv2, "kekd", "\x1b[2J"),
				count(1, inventory.KMSv2, "", ""),
			}},
			{Resource: "a b", Objects: 1, Counts: []inventory.Count{count(1, inventory.Unencrypted, "", "")}},
		},
		Totals:     []inventory.Count{count(13, inventory.Unparsable, "kekd", "")},
		Unparsable: []inventory.Sample{{Key: "/registry/\xff\n", Problem: "encryptedData is empty"}},
	}
	var stdout, stderr bytes.Buffer
	a := &app{stdout: &stdout, stderr: &stderr}
	if err := a.printInventory(report); err != nil {
		t.Fatal(err)
	}
	const table = `RESOURCE  OBJECTS  STANDING     PROVIDER  KEY_ID
secrets   10       kms-v2       kekd      k8s-kek/01/a1b2c3
secrets   1        kms-v2       kekd      "\x1b[2J"
secrets   1        kms-v2       -         -
"a b"     1        unencrypted  -         -
TOTAL     13       unparsable   kekd      -
`
	if diff := cmp.Diff(table, stdout.String()); diff != "" {
		t.Errorf("stdout (-want +got):\n%s", diff)
	}
	const notes = `13 objects below /registry/ of etcd at https://127.0.0.1:2379, revision 42, in 1.235s
kekctl: warning: the counts are not those of one instant: etcd was compacted 1 time(s) while it was read
kekctl: warning: "/registry/\xff\n" cannot be parsed: encryptedData is empty
`
	if diff := cmp.Diff(notes, stderr.String()); diff != "" {
		t.Errorf("stderr (-want +got):\n%s", diff)
	}
}
