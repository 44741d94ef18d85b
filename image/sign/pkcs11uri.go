package sign

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

const pkcs11Scheme = "pkcs11:"

// Classes of keys, as RFC 7512 names them in the attribute type.
const (
	classPrivate = "private"
	classSecret  = "secret-key"
)

// tokenURI is what of a PKCS #11 URI (RFC 7512) picks a key.
type tokenURI struct {
	Token, Serial string // label and serial number of the token
	Slot          *int   // or the slot that it is in
	Object        string // label of the key
	ID            []byte // or its id
	Module        string // the token's library, an absolute path
	PINFile       string // Optional.
}

// parseTokenURI reads a PKCS #11 URI. Only what picks a key is allowed, so that
// nothing that was meant to narrow the choice is passed over. A PIN in the URI
// itself is refused: it would stand in the process list. class is what a type
// attribute must say, if there is one.
func parseTokenURI(s, class string) (*tokenURI, error) {
	rest, ok := strings.CutPrefix(s, pkcs11Scheme)
	if !ok || len(s) > 4096 {
		return nil, errors.New("not a pkcs11: URI, or one of more than 4096 bytes")
	}
	path, query, _ := strings.Cut(rest, "?")
	u := &tokenURI{}
	seen := map[string]bool{}
	for _, part := range []struct{ text, separator string }{{path, ";"}, {query, "&"}} {
		if part.text == "" {
			continue
		}
		for _, attribute := range strings.Split(part.text, part.separator) {
			name, raw, ok := strings.Cut(attribute, "=")
			if name == "pin-value" {
				return nil, errors.New("attribute pin-value would show the PIN in the process list: use pin-source=file:/path, or enter it when asked")
			}
			if !ok || seen[name] {
				return nil, fmt.Errorf("attribute %.40q has no value or is there twice", name)
			}
			seen[name] = true
			value, err := url.PathUnescape(raw)
			if err != nil {
				return nil, fmt.Errorf("attribute %s: %w", name, err)
			}
			if name == "type" && value != class {
				return nil, fmt.Errorf("attribute type is %.20q, want %s", value, class)
			}
			if err := u.set(name, value); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case u.Module == "":
		return nil, errors.New("attribute module-path is missing: it names the token's library")
	case u.Token == "" && u.Serial == "" && u.Slot == nil:
		return nil, errors.New("no token is named: want token, serial or slot-id")
	case u.Object == "" && u.ID == nil:
		return nil, errors.New("no key is named: want object or id")
	}
	return u, nil
}

func (u *tokenURI) set(name, value string) error {
	if value == "" || strings.ContainsRune(value, 0) {
		return fmt.Errorf("attribute %s is empty or has a zero byte", name)
	}
	switch name {
	case "token":
		u.Token = value
	case "serial":
		u.Serial = value
	case "slot-id":
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return fmt.Errorf("attribute slot-id: %w", err)
		}
		slot := int(n)
		u.Slot = &slot
	case "object":
		u.Object = value
	case "id":
		u.ID = []byte(value)
	case "type":
	case "module-path":
		if !filepath.IsAbs(value) {
			return fmt.Errorf("attribute module-path is %.200q, want an absolute path", value)
		}
		u.Module = value
	case "pin-source":
		file, ok := strings.CutPrefix(value, "file:")
		if file = strings.TrimPrefix(file, "//"); !ok || !filepath.IsAbs(file) {
			return fmt.Errorf("attribute pin-source is %.200q, want file:/path", value)
		}
		u.PINFile = file
	default:
		return fmt.Errorf("attribute %.40q is not supported", name)
	}
	return nil
}

// String names the key for messages.
func (u *tokenURI) String() string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+" "+strconv.Quote(value))
		}
	}
	add("token", u.Token)
	add("serial", u.Serial)
	if u.Slot != nil {
		add("slot", strconv.Itoa(*u.Slot))
	}
	add("object", u.Object)
	add("id", hex.EncodeToString(u.ID))
	return strings.Join(parts, ", ")
}
