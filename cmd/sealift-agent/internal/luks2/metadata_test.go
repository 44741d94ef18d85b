package luks2

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// document returns the JSON of a freshly formatted volume.
func document(t testing.TB) []byte {
	t.Helper()
	v, err := Prepare(newMemory(), testSize, testKey(1), Options{Tokens: []json.RawMessage{
		json.RawMessage(`{"type":"sealift-tpm2","keyslots":["0"]}`),
	}})
	if err != nil {
		t.Fatal(err)
	}
	doc, _, _ := bytes.Cut(v.pending[1][binarySize:], []byte{0})
	return doc
}

func TestOnlyOurShapeIsAccepted(t *testing.T) {
	doc := string(document(t))
	if _, err := decodeMetadata([]byte(doc)); err != nil {
		t.Fatal(err)
	}
	segment := `"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64"`
	for _, tt := range []struct {
		name, old, new, want string
	}{
		{"the null cipher", segment, strings.Replace(segment, "aes-xts-plain64", "cipher_null-ecb", 1), "cipher_null-ecb"},
		{"another cipher", segment, strings.Replace(segment, "aes-xts-plain64", "aes-cbc-essiv:sha256", 1), "only"},
		{"the null cipher in the key area", `"size":"258048","encryption":"aes-xts-plain64"`, `"size":"258048","encryption":"cipher_null"`, "cipher_null"},
		{"a linear segment", `"type":"crypt"`, `"type":"linear"`, "linear"},
		{"an integrity field", `"sector_size":4096`, `"sector_size":4096,"integrity":{}`, "integrity"},
		{"segment flags", `"sector_size":4096`, `"sector_size":4096,"flags":["backup-final"]`, "flags"},
		{"small sectors", `"sector_size":4096`, `"sector_size":512`, "512"},
		{"a segment of fixed size", `"dynamic"`, `"4096"`, "4096"},
		{"a shifted iv", `"iv_tweak":"0"`, `"iv_tweak":"8"`, "iv tweak"},
		{"data inside the headers", `"offset":"16777216"`, `"offset":"4096"`, "4096"},
		{"data before the key area ends", `"offset":"16777216"`, `"offset":"36864"`, "key"},
		{"a negative offset", `"offset":"16777216"`, `"offset":"-4096"`, "-4096"},
		{"an offset that overflows", `"offset":"16777216"`, `"offset":"9223372036854775808"`, "offset"},
		{"a short volume key", `"key_size":64`, `"key_size":32`, "32"},
		{"the key area in the headers", `"offset":"32768"`, `"offset":"0"`, "area"},
		{"a huge key area", `"size":"258048"`, `"size":"9223372036854775807"`, "area"},
		{"one stripe", `"stripes":4000`, `"stripes":1`, "stripes"},
		{"another hash in the splitter", `"stripes":4000,"hash":"sha256"`, `"stripes":4000,"hash":"sha1"`, "sha1"},
		{"argon2id", `"kdf":{"type":"pbkdf2"`, `"kdf":{"type":"argon2id"`, "argon2id"},
		{"few iterations", `"iterations":1000`, `"iterations":1`, "iterations"},
		{"iterations without end", `"iterations":1000`, `"iterations":2000000000`, "iterations"},
		{"a keyslot of another type", `"type":"luks2"`, `"type":"reencrypt"`, "reencrypt"},
		{"a digest over no segment", `"segments":["0"]`, `"segments":[]`, "digest"},
		{"a digest of another type", `"digests":{"0":{"type":"pbkdf2"`, `"digests":{"0":{"type":"none"`, "none"},
		{"no digest", `"digests":{"0":`, `"digests":{"1":`, "digest 0"},
		{"requirements", `"config":{`, `"config":{"requirements":{"mandatory":["online-reencrypt"]},`, "requirements"},
		{"another json size", `"json_size":"12288"`, `"json_size":"28672"`, "json size"},
		{"a token with a strange number", `"tokens":{"0"`, `"tokens":{"00"`, "token"},
		{"a token of a missing keyslot", `"keyslots":["0"],"type"`, `"keyslots":["7"],"type"`, ""},
		{"a second document", `"config":`, `"config":`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := strings.Replace(doc, tt.old, tt.new, 1)
			switch tt.name {
			case "a second document":
				bad = doc + "{}"
			case "a token of a missing keyslot":
				bad = strings.Replace(doc, `"type":"sealift-tpm2","keyslots":["0"]`, `"type":"sealift-tpm2","keyslots":["7"]`, 1)
			}
			if bad == doc {
				t.Fatalf("the document does not contain %s", tt.old)
			}
			_, err := decodeMetadata([]byte(bad))
			if err == nil {
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error does not say %q: %v", tt.want, err)
			}
		})
	}
}

func FuzzMetadata(f *testing.F) {
	doc := document(f)
	f.Add(doc)
	f.Add([]byte(`{}`))
	f.Add(bytes.Replace(doc, []byte(`"offset":"32768"`), []byte(`"offset":"9223372036854771712"`), 1))
	f.Fuzz(func(t *testing.T, doc []byte) {
		m, err := decodeMetadata(doc)
		if err != nil {
			return
		}
		k, s := m.Keyslots["0"], m.Segments["0"]
		if k.Area.Offset < 2*headerSize || k.Area.Offset+k.Area.Size > s.Offset || s.Encryption != cipher || k.Area.Encryption != cipher {
			t.Errorf("accepted: %s", doc)
		}
		if _, err := m.tokens(); err != nil {
			t.Errorf("accepted with bad tokens: %v", err)
		}
	})
}

func FuzzHeader(f *testing.F) {
	dev := newMemory()
	if _, err := Format(dev, testSize, testKey(1), Options{Label: "state"}); err != nil {
		f.Fatal(err)
	}
	b := make([]byte, 2*headerSize)
	if _, err := dev.ReadAt(b, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:headerSize])
	f.Add([]byte(magicPrimary))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadHeader(bytes.NewReader(b))
		if err == nil && !validUUID(h.UUID) {
			t.Errorf("accepted uuid %q", h.UUID)
		}
	})
}
