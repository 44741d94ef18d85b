package efi

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"
)

func TestForeign(t *testing.T) {
	payload := func(list string) []byte {
		b := make([]byte, 16) // EFI_TIME
		b = binary.LittleEndian.AppendUint32(b, 24+4)
		b = append(b, 0x00, 0x02, 0xf1, 0x0e)
		b = append(b, pkcs7GUID...)
		return append(append(b, "pkcs"...), list...)
	}
	keys := Keys{PK: payload("list of PK"), KEK: payload("list of KEK"), DB: payload("list of db")}
	tests := map[string]struct {
		vars map[string]string
		want []string
	}{
		"the same lists are not foreign": {
			vars: map[string]string{"PK-" + global: "list of PK", "KEK-" + global: "list of KEK", "db-" + security: "list of db"},
		},
		"another PK is foreign": {
			vars: map[string]string{"PK-" + global: "list of XY", "KEK-" + global: "list of KEK", "db-" + security: "list of db"},
			want: []string{"PK"},
		},
		"a db with one more list is foreign": {
			vars: map[string]string{"PK-" + global: "list of PK", "KEK-" + global: "list of KEK", "db-" + security: "list of db, more"},
			want: []string{"db"},
		},
		"missing variables are foreign": {
			want: []string{"PK", "KEK", "db"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, value := range tt.vars {
				if err := os.WriteFile(dir+"/"+file, append([]byte{0x27, 0, 0, 0}, value...), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Vars{Dir: dir}.Foreign(keys)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}
