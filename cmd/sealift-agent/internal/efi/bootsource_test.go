package efi

import (
	"encoding/hex"
	"strings"
	"testing"
)

// Load options as OVMF makes them, with attributes, a path length and the
// description "x" to be put in front.
const (
	pathPXE = "02010c00d041030a00000000" + "010106000002" + // PciRoot(0)/Pci(2,0)
		"030b2500525400123456" + "0000000000000000000000000000000000000000000000000000" + "01" + // MAC
		"030c1b00" + "0000000000000000000000000000000000000000000000" + // IPv4
		"7fff0400"
	pathHTTP  = "02010c00d041030a00000000" + "03180400" + "7fff0400"
	pathCD    = "02010c00d041030a00000000" + "010106000003" + "0302080000000000" + "7fff0400"
	pathStick = "02010c00d041030a00000000" + "010106000003" + "030506000000" + "7fff0400"
)

// option is a load option with that device path.
func option(path string) string {
	n := len(path) / 2
	return "01000000" + hex.EncodeToString([]byte{byte(n), byte(n >> 8)}) + "78000000" + path
}

func TestBootedFromNetwork(t *testing.T) {
	for name, tt := range map[string]struct {
		current, option string
		network         bool
		err             string
	}{
		"PXE has a MAC node":           {"0300", option(pathPXE), true, ""},
		"HTTP boot has a URI node":     {"0300", option(pathHTTP), true, ""},
		"an optical drive has neither": {"0300", option(pathCD), false, ""},
		"nor has a USB stick":          {"0300", option(pathStick), false, ""},
		"nor has our own entry":        {"0300", entryBytes, false, ""},
		"data behind the path is not looked at": {
			"0300", option("7fff0400") + pathPXE, false, "",
		},
		"an option that is not there":       {"0400", option(pathCD), false, "Boot0004"},
		"a number that is none":             {"03", option(pathCD), false, "want 2"},
		"a path that ends early":            {"0300", strings.Replace(option(pathCD), "010000001e00", "01000000ff00", 1), false, "the device path has"},
		"a node of no length":               {"0300", option("01010000"), false, "a node of the device path has 0 bytes"},
		"a node that goes on after the end": {"0300", option("0101ff00"), false, "a node of the device path has 255 bytes"},
		"a description without an end":      {"0300", "010000000400780079007a00", false, "has no end"},
		"what is too short":                 {"0300", "0100", false, "too short"},
	} {
		t.Run(name, func(t *testing.T) {
			v := firmware(t, map[string]string{"BootCurrent": tt.current, "Boot0003": tt.option})
			network, err := v.BootedFromNetwork()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil || network != tt.network {
				t.Errorf("got %t, %v, want %t", network, err, tt.network)
			}
		})
	}
}

func FuzzOnNetwork(f *testing.F) {
	for _, s := range []string{option(pathPXE), option(pathCD), entryBytes, "0100"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		network, err := onNetwork(b)
		if network && err != nil {
			t.Error("both an answer and an error")
		}
	})
}
