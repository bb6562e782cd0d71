package admintest

import (
	"time"

	"kekd/hsm"
	"kekd/internal/kek"
)

// Put gives a key the state that SetUse gives it on a token, label and all. The day of
// a destruction may be two days ago at the earliest.
func Put(k *kek.Info, use hsm.Use) {
	k.State, k.DestroyAfter, k.Attributes.Label = 0, time.Time{}, k.Ring
	switch use {
	case hsm.Enabled():
	case hsm.Disabled():
		k.State, k.Attributes.Label = kek.Disabled, k.Ring+"/disabled"
	default:
		day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -2)
		for use != hsm.DestroyAfter(day) {
			day = day.AddDate(0, 0, 1)
		}
		k.State, k.DestroyAfter, k.Attributes.Label = kek.Scheduled, day, k.Ring+"/destroy-after-"+day.Format(time.DateOnly)
	}
}
