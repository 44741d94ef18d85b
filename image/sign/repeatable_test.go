package sign

import (
	"bytes"
	"testing"

	"github.com/sealift/sealift/image/sign/bundle"
)

func TestAKeyInMemorySignsRepeatably(t *testing.T) {
	key := newKey(t)
	var bundles [3][]byte
	for i, message := range []string{"one", "one", "other"} {
		s, err := FromKey(key) // anew: nothing is kept between signatures
		if err != nil {
			t.Fatal(err)
		}
		if bundles[i], err = s.Sign(t.Context(), []byte(message)); err != nil {
			t.Fatal(err)
		}
		if err := bundle.Verify([]byte(message), bundles[i], publicPEM(t, key.Public())); err != nil {
			t.Error(err)
		}
		if err := sigstoreVerify([]byte(message), bundles[i], &key.PublicKey); err != nil {
			t.Errorf("sigstore's verifier: %v", err)
		}
	}
	if !bytes.Equal(bundles[0], bundles[1]) {
		t.Error("two bundles for one message differ")
	}
	if bytes.Equal(bundles[0], bundles[2]) {
		t.Error("bundles for two messages are equal")
	}
}
