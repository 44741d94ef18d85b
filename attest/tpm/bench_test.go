package tpm

import (
	"testing"

	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// BenchmarkBoot measures each step of a boot against swtpm. A chip is 10 to
// 100 times slower.
func BenchmarkBoot(b *testing.B) {
	for _, tt := range []struct {
		name string
		conf tpmtest.Config
	}{{"P256", tpmtest.Config{P256Certificate: true}}, {"P384", tpmtest.Config{}}} {
		b.Run(tt.name, func(b *testing.B) {
			_, dev, ev, in := collected(b, tt.conf)
			b.Run("Identify", func(b *testing.B) {
				for b.Loop() {
					if _, err := dev.Identify("test"); err != nil {
						b.Fatal(err)
					}
				}
			})
			blob, secret, _ := credential(b, dev.identity)
			b.Run("Activate", func(b *testing.B) {
				for b.Loop() {
					if _, err := dev.Activate(blob, secret); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("Collect", func(b *testing.B) {
				for b.Loop() {
					var err error
					if ev, err = dev.Collect(b.Context(), in); err != nil {
						b.Fatal(err)
					}
				}
			})
			w := wrap(b, ev.Transport.Public, sha256Quote(b, ev).PCRs, random(32))
			b.Run("Unwrap", func(b *testing.B) {
				for b.Loop() {
					if _, err := dev.Unwrap(w); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
	b.Run("CollectWithProof", func(b *testing.B) {
		_, dev, _, in := collected(b, tpmtest.Config{P256Certificate: true})
		in.ProveBanks = true
		for b.Loop() {
			if _, err := dev.Collect(b.Context(), in); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("CollectWithoutSHA256", func(b *testing.B) {
		_, dev, _, in := collected(b, tpmtest.Config{Banks: []string{"sha384"}, P256Certificate: true})
		for b.Loop() {
			if _, err := dev.Collect(b.Context(), in); err != nil {
				b.Fatal(err)
			}
		}
	})
	d := tpmtest.Open(b)
	dev := New(d)
	key, pub := signingKey(b)
	var blob []byte
	b.Run("SealDeviceHalf", func(b *testing.B) {
		for b.Loop() {
			var err error
			if blob, err = dev.SealDeviceHalf(random(32), pub); err != nil {
				b.Fatal(err)
			}
		}
	})
	sigs := signed(b, key, d.PCR("sha256", 11))
	b.Run("UnsealDeviceHalf", func(b *testing.B) {
		for b.Loop() {
			if _, err := dev.UnsealDeviceHalf(blob, pub, sigs); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Cap", func(b *testing.B) {
		for b.Loop() {
			if err := dev.Cap("state", random(32), "uuid"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
