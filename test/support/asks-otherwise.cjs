// For node --require: the addon is asked another question than it is told to, and so gives a wrong answer, as one that
// computes wrongly does.
const { dlopen } = process;

process.dlopen = (module, ...rest) => {
  dlopen.call(process, module, ...rest);
  const { Engine } = module.exports;
  if (!Engine) return;
  module.exports.Engine = class extends Engine {
    request(options) {
      const body = Buffer.from(options.body).toString().replace('What is 2+2?', 'What is 3+3?');
      return super.request({ ...options, body: Buffer.from(body) });
    }
  };
};
