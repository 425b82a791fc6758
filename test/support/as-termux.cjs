// Makes Node look like that of Termux to the programs of a test: `node --require as-termux.cjs`. Android calls itself so,
// and shows its processors to no app.
const os = require('node:os');
const { syncBuiltinESMExports } = require('node:module');

Object.defineProperty(process, 'platform', { value: 'android' });
os.platform = () => 'android';
os.cpus = () => [];
syncBuiltinESMExports();
