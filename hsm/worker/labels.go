package worker

import (
	"slices"
	"strings"
	"unicode"

	"github.com/miekg/pkcs11"

	"kekd/hsm/wire"
)

// Labels lists the labels of AES keys on the token that are not of the ring, sorted, each
// once. A ring that seems empty is often one whose label is mistyped.
func (w *Worker) Labels() (wire.LabelsReply, error) {
	var reply wire.LabelsReply
	err := w.onSession("list the labels of other keys", func(s session) error {
		objects, err := w.findObjects(s,
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES))
		if err != nil {
			return err
		}
		var labels []string
		for _, o := range objects {
			b, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_LABEL)
			if err != nil {
				return err
			}
			if !ofRing(string(b), w.ring) {
				labels = append(labels, printable(string(b)))
			}
		}
		slices.Sort(labels)
		labels = slices.Compact(labels)
		reply = wire.LabelsReply{Labels: labels[:min(len(labels), wire.MaxLabels)], More: max(0, len(labels)-wire.MaxLabels)}
		return nil
	})
	return reply, err
}

// printable makes a label that other programs chose fit for a message.
func printable(label string) string {
	label = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, label)
	if runes := []rune(label); len(runes) > wire.MaxLabel {
		return string(runes[:wire.MaxLabel]) + "…"
	}
	return label
}
