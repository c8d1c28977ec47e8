// A MongoDB-compatible server for tests: FerretDB's embeddable package. Not part of ocrctl; built by scripts/ferretdb.
//
//	ferretdb --listen 127.0.0.1:27017 --sqlite FOLDER
//	ferretdb --listen 127.0.0.1:27017 --postgresql postgres://user@host:port/database
//
// Prints one line on standard output once it is set up; SIGTERM ends it.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"strings"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:27017", "address to listen on")
	folder := flag.String("sqlite", "", "keep the data in this folder")
	postgresql := flag.String("postgresql", "", "keep the data in this PostgreSQL database (a URL)")
	flag.Parse()
	config := &ferretdb.Config{Listener: ferretdb.ListenerConfig{TCP: *listen}}
	switch {
	case *folder != "" && *postgresql == "":
		config.Handler = "sqlite"
		config.SQLiteURL = "file:" + strings.TrimSuffix(*folder, "/") + "/"
	case *postgresql != "" && *folder == "":
		config.Handler = "postgresql"
		config.PostgreSQLURL = *postgresql
	default:
		log.Fatal("ferretdb: give one of --sqlite and --postgresql")
	}
	server, err := ferretdb.New(config)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fmt.Println("listening on " + *listen)
	if err := server.Run(ctx); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}
