package demo

import (
	"bytes"
	"os"
	"testing"

	"github.com/sealift/sealift/firmware"
)

func TestReleaseChangesTheMeasuredVolumeOnly(t *testing.T) {
	stock, err := os.ReadFile("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	v2, err := release(stock, "2.0.0", "03/04/2026")
	if err != nil {
		t.Fatal(err)
	}
	if len(v2) != len(stock) {
		t.Fatalf("image has %d bytes, want %d", len(v2), len(stock))
	}
	was, err := firmware.Volumes(stock)
	if err != nil {
		t.Fatal(err)
	}
	is, err := firmware.Volumes(v2)
	if err != nil {
		t.Fatal(err)
	}
	if is[0] != was[0] {
		t.Error("the PEI volume changed")
	}
	if is[1].SHA256 == was[1].SHA256 {
		t.Error("the DXE volume did not change")
	}
	p, _ := firmware.FindPacked(v2)
	raw, err := firmware.Unpack(v2, p)
	if err != nil || !bytes.Contains(raw, []byte("2.0.0\x0003/04/2026\x00")) {
		t.Errorf("the new version is not in the image (%v)", err)
	}
	if _, err := release(stock, "10.0.0", "03/04/2026"); err == nil {
		t.Error("a longer version was accepted")
	}
}
