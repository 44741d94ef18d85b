package pgstore

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// answering is a server that lets everybody in and answers each query with one row of
// texts, and with an error once it has done so. It returns its DSN.
func answering(t *testing.T, row ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				answer(pgproto3.NewBackend(c, c), row)
			})
		}
	})
	return "postgres://u@" + l.Addr().String() + "/d?sslmode=disable"
}

func answer(b *pgproto3.Backend, row []string) {
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	fields := make([]pgproto3.FieldDescription, len(row))
	values := make([][]byte, len(row))
	for i, v := range row {
		fields[i] = pgproto3.FieldDescription{Name: []byte("?"), DataTypeOID: pgtype.TextOID, DataTypeSize: -1, TypeModifier: -1}
		if i == len(row)-1 {
			fields[i].DataTypeOID, fields[i].DataTypeSize = pgtype.BoolOID, 1
		}
		values[i] = []byte(v)
	}
	for answered := false; b.Flush() == nil; {
		m, err := b.Receive()
		if err != nil {
			return
		}
		switch m := m.(type) {
		case *pgproto3.Parse:
			if answered {
				b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P01", Message: "no more than one answer"})
				_ = b.Flush()
				return
			}
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Describe:
			if m.ObjectType == 'S' {
				b.Send(&pgproto3.ParameterDescription{})
			}
			b.Send(&pgproto3.RowDescription{Fields: fields})
		case *pgproto3.Bind:
			b.Send(&pgproto3.BindComplete{})
			for i := range values { // booleans are asked for in binary
				if i == len(values)-1 && len(m.ResultFormatCodes) > i && m.ResultFormatCodes[i] == 1 {
					values[i] = []byte{map[string]byte{"t": 1}[row[i]]}
				}
			}
		case *pgproto3.Execute:
			answered = true
			b.Send(&pgproto3.DataRow{Values: values})
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
		case *pgproto3.Sync:
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Terminate:
			return
		}
	}
}

// A server that is too old, or would lose what it said is committed, is refused before
// anything is asked of it, and the error says why.
func TestServersThatCannotBeReliedOnAreRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		row  []string
		want string
	}{
		"13":                  {[]string{"130021", "on", "on", "on", "f"}, "PostgreSQL 130021 (server_version_num), want 140000 or later"},
		"the last before 14":  {[]string{"139999", "on", "on", "on", "f"}, "PostgreSQL 139999"},
		"9.6":                 {[]string{"90624", "on", "on", "on", "f"}, "PostgreSQL 90624"},
		"no version":          {[]string{"14devel", "on", "on", "on", "f"}, "PostgreSQL 14devel"},
		"13, with more wrong": {[]string{"130000", "off", "off", "off", "t"}, "want 140000 or later"},
		"a standby":           {[]string{"150000", "on", "on", "on", "t"}, "standby"},
		"without fsync":       {[]string{"150000", "on", "off", "on", "f"}, "fsync = off"},
		"with torn pages":     {[]string{"150000", "on", "on", "off", "f"}, "full_page_writes = off"},
		"that does not wait":  {[]string{"150000", "off", "on", "on", "f"}, "synchronous_commit = off"},
		// It is good enough, and is asked more.
		"14":                    {[]string{"140000", "on", "on", "on", "f"}, "no more than one answer"},
		"with a remote standby": {[]string{"170002", "remote_apply", "on", "on", "f"}, "no more than one answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Open(t.Context(), answering(t, tt.row...))
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
