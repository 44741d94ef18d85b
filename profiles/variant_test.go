package profiles

import "testing"

func TestMarkedDebugReadsTheLastVariant(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                      false,
		"ID=sealift\n":                          false,
		"ID=sealift\nVARIANT_ID=debug\n":        true,
		"VARIANT_ID=\"debug\"":                  true,
		"VARIANT_ID='debug'\n":                  true,
		"VARIANT=debug\n":                       false,
		"VARIANT_ID=debugging\n":                false,
		"# VARIANT_ID=debug\n":                  false,
		"VARIANT_ID=debug\nVARIANT_ID=server\n": false,
	} {
		if got := MarkedDebug([]byte(text)); got != want {
			t.Errorf("%q: got %v", text, got)
		}
	}
}
