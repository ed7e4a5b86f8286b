package main

import (
	"strings"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/pgjettest"
)

// TestAppend: it works whether or not GORM prepares statements, and none of AppendSQL's is
// kept. It fails without a transaction.
func TestAppend(t *testing.T) {
	for _, prepare := range []bool{false, true} {
		pool := pgjettest.Database(t)
		db, err := gorm.Open(postgres.Open(pool.Config().ConnString()), &gorm.Config{PrepareStmt: prepare})
		if err != nil {
			t.Fatal(err)
		}
		err = db.WithContext(t.Context()).Transaction(func(tx *gorm.DB) error {
			if err := tx.Exec(`select 1`).Error; err != nil {
				return err
			}
			return appendGORM(tx, orders.Paid{OrderID: "o-17"})
		})
		n := 0
		if err != nil || pool.QueryRow(t.Context(), `select count(*) from pgjet.outbox`).Scan(&n) != nil || n != 1 {
			t.Errorf("prepare %t: %d events, %v, want 1", prepare, n, err)
		}
		if prepared, ok := db.ConnPool.(*gorm.PreparedStmtDB); ok {
			for _, sql := range prepared.Stmts.Keys() {
				if strings.Contains(sql, "pgjet.outbox") {
					t.Errorf("GORM keeps %s", sql)
				}
			}
		} else if prepare {
			t.Errorf("GORM's pool is a %T", db.ConnPool)
		}
		if err := appendGORM(db.WithContext(t.Context()), orders.Paid{OrderID: "o-17"}); err == nil {
			t.Errorf("prepare %t: no error without a transaction", prepare)
		}
		conns, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		conns.Close()
	}
}
