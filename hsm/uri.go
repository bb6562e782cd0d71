package hsm

import (
	"fmt"
	"net/url"
	"strings"

	"kekd/hsm/wire"
)

// ParseURI reads the token's attributes out of a PKCS#11 URI (RFC 7512): token,
// serial, manufacturer and model, each at most once. Attributes that name an
// object, a library or a PIN are refused, since the configuration has fields of
// its own for them; so are attributes that RFC 7512 does not know.
func ParseURI(uri string) (wire.Selector, error) {
	rest, ok := strings.CutPrefix(uri, "pkcs11:")
	if !ok {
		return wire.Selector{}, fmt.Errorf("%q does not begin with pkcs11", uri)
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	if hasQuery {
		name, _, _ := strings.Cut(query, "=")
		return wire.Selector{}, fmt.Errorf("the attribute %q behind the ? is not supported: use hsm.module and hsm.pinFile", name)
	}
	var s wire.Selector
	to := map[string]*string{"token": &s.Label, "serial": &s.Serial, "manufacturer": &s.Manufacturer, "model": &s.Model}
	for part := range strings.SplitSeq(path, ";") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return wire.Selector{}, fmt.Errorf("%q has no value", part)
		}
		field := to[name]
		if field == nil {
			return wire.Selector{}, fmt.Errorf("the attribute %q is not supported: token, serial, manufacturer and model are", name)
		}
		// Not QueryUnescape, to which a plus sign is a space.
		plain, err := url.PathUnescape(value)
		if err != nil {
			return wire.Selector{}, fmt.Errorf("the value of %q: %w", name, err)
		}
		if plain == "" {
			return wire.Selector{}, fmt.Errorf("the value of %q is empty", name)
		}
		if *field != "" {
			return wire.Selector{}, fmt.Errorf("the attribute %q stands twice", name)
		}
		*field = plain
	}
	return s, nil
}
